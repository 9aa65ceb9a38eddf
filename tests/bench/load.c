/* The load generator of the benchmark suite, one thread around epoll.
 *
 *     load MODE port=N [connections=N] [window=N] [size=BYTES] [seconds=S] [warmup=S]
 *              [tls=1] [touch=1] [limit=N] [cpu=N]
 *
 * A message is `int32 LE type | uint32 LE length | value`; `size` is the length of the value.
 * Nothing is encoded or decoded while the clock runs: every connection sends slices of one
 * pattern made beforehand, compares what comes back with the same pattern and counts bytes.
 *
 * MODE is one of
 *   echo       every connection keeps `window` messages outstanding;
 *   broadcast  the last connection sends `window` messages, all others must receive them,
 *              then the next are sent; deliveries to the others are counted;
 *   churn      `connections` clients in parallel: connect, one echo, orderly close, again;
 *   hold       opens the connections, prints a line, holds them until stdin ends.
 *
 * The result is one line of JSON on stdout.  Latency runs from the moment a message may be sent
 * to the moment its last byte has come back.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#else
typedef void SSL;
#endif

enum { RECEIVE_SIZE = 256 * 1024, EVENTS = 512, PACE = 256, BUCKETS = 4096, TYPE_ECHO = 1 };
#define NANOSECONDS 1000000000ull
#define STALLED (5 * NANOSECONDS) /* nothing came for so long: the server is stuck */

struct connection {
    int fd;
    SSL *tls;
    uint64_t sent, pending; /* bytes sent; bytes that may be sent and are not yet */
    uint64_t received, complete; /* bytes; whole messages */
    uint64_t *since; /* when each outstanding message could be sent, a ring of `window` */
    bool wants_writable;
};

static struct {
    char mode[16];
    int port, connections, window, size, tls, touch, limit, cpu;
    double seconds, warmup;
} options = {.connections = 1, .window = 1, .size = 64, .cpu = -1, .seconds = 1.0, .warmup = 0.2};

static struct connection *connections;
static unsigned char *pattern, *received_bytes;
static size_t message_size, pattern_size;
static int poller, open_count;
static bool draining; /* the measurement is over: nothing more is sent */
static uint64_t counted, total, last_progress; /* messages since the warm-up; in all; a time */
static uint64_t histogram[BUCKETS];
#ifdef WITH_TLS
static SSL_CTX *tls_context;
#endif

#define die(...) (fprintf(stderr, "load: " __VA_ARGS__), fputc('\n', stderr), exit(1))

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NANOSECONDS + (uint64_t)t.tv_nsec;
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* Histogram: 64 buckets to each power of two, so a figure is within 1.6 % of the truth. */

static void record(uint64_t nanoseconds, uint64_t count)
{
    unsigned bucket = (unsigned)nanoseconds;
    if (nanoseconds >= 128) {
        unsigned shift = 63u - (unsigned)__builtin_clzll(nanoseconds) - 6u;
        bucket = 128 + (shift - 1) * 64 + (unsigned)(nanoseconds >> shift) - 64;
    }
    histogram[bucket] += count;
}

static double percentile_us(double share)
{
    uint64_t all = 0, seen = 0;
    for (int i = 0; i < BUCKETS; i++) all += histogram[i];
    uint64_t wanted = (uint64_t)(share * (double)all);
    for (int i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen <= wanted) continue;
        if (i < 128) return i / 1e3;
        unsigned shift = (unsigned)(i - 128) / 64 + 1;
        uint64_t low = (uint64_t)((i - 128) % 64 + 64) << shift;
        return (double)(low + (1ull << shift) / 2) / 1e3;
    }
    return 0.0;
}

/* Bytes in and out: -1 when it would block, dead on anything else. */

static ssize_t put(struct connection *c, const void *bytes, size_t size)
{
#ifdef WITH_TLS
    if (c->tls) {
        int n = SSL_write(c->tls, bytes, size > 1 << 30 ? 1 << 30 : (int)size);
        if (n > 0) return n;
        int why = SSL_get_error(c->tls, n);
        if (why == SSL_ERROR_WANT_WRITE || why == SSL_ERROR_WANT_READ) return -1;
        die("TLS write failed (%d)", why);
    }
#endif
    ssize_t n = send(c->fd, bytes, size, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) die("send: %s", strerror(errno));
    return n;
}

static ssize_t get(struct connection *c)
{
#ifdef WITH_TLS
    if (c->tls) {
        int n = SSL_read(c->tls, received_bytes, RECEIVE_SIZE);
        if (n > 0) return n;
        int why = SSL_get_error(c->tls, n);
        if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) return -1;
        die("TLS read failed (%d): the server closed a connection", why);
    }
#endif
    ssize_t n = recv(c->fd, received_bytes, RECEIVE_SIZE, 0);
    if (n < 0 && errno != EAGAIN) die("recv: %s", strerror(errno));
    return n;
}

/* Whether bytes wait where epoll does not see them. */
static bool has_buffered(struct connection *c)
{
#ifdef WITH_TLS
    return c->tls && SSL_has_pending(c->tls);
#else
    return c->tls != NULL;
#endif
}

static int dial(int index)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (fd < 0) die("socket: %s", strerror(errno));
    struct timeval patience = {.tv_sec = 10};
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    /* Source addresses take turns: ports in TIME_WAIT never run out on one of them. */
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + (uint32_t)(index % 64));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons((uint16_t)options.port);
    if (bind(fd, (struct sockaddr *)&from, sizeof from)) die("bind: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect: %s", strerror(errno));
    return fd;
}

static void start_tls(struct connection *c)
{
#ifdef WITH_TLS
    if (!(c->tls = SSL_new(tls_context))) die("no TLS object");
    SSL_set_fd(c->tls, c->fd);
    if (SSL_connect(c->tls) != 1) die("TLS handshake failed");
#else
    (void)c;
    die("built without TLS");
#endif
}

static void set_up_tls(void)
{
#ifdef WITH_TLS
    tls_context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(tls_context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_mode(tls_context,
                     SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(tls_context, 1);
    SSL_CTX_set_default_read_buffer_len(tls_context, RECEIVE_SIZE);
#endif
}

/* One message there and back on a socket that still blocks. */
static void round_trip(struct connection *c)
{
    for (size_t done = 0; done < message_size;) {
        ssize_t n = put(c, pattern + done, message_size - done);
        if (n < 0) die("no room to send within 10 s");
        done += (size_t)n;
    }
    for (size_t done = 0; done < message_size;) {
        ssize_t n = get(c);
        if (n <= 0) die("no echo within 10 s");
        done += (size_t)n;
    }
}

/* Connections are accepted in order, so an echo on one proves that those before it are served:
 * one now and then keeps the server's backlog from overflowing. */
static void open_connections(bool may_echo)
{
    for (int i = 0; i < options.connections; i++) {
        struct connection *c = &connections[i];
        c->fd = dial(i);
        if (options.tls) start_tls(c);
        bool pace = (i + 1) % PACE == 0 || i + 1 == options.connections;
        if (may_echo && (pace || options.touch)) round_trip(c);
    }
    if (!may_echo) usleep(300 * 1000);
}

static void watch(struct connection *c, bool writable, int operation)
{
    struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0u), .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &e)) die("epoll_ctl: %s", strerror(errno));
    c->wants_writable = writable;
}

static void send_pending(struct connection *c)
{
    while (c->pending) {
        size_t offset = c->sent % message_size, size = pattern_size - offset;
        if (size > c->pending) size = c->pending;
        ssize_t n = put(c, pattern + offset, size);
        if (n < 0) break;
        c->sent += (uint64_t)n;
        c->pending -= (uint64_t)n;
    }
    if ((c->pending > 0) != c->wants_writable) watch(c, c->pending > 0, EPOLL_CTL_MOD);
}

/* Allow `count` more messages on a connection, from now on. */
static void allow(struct connection *c, uint64_t count, uint64_t at)
{
    if (draining) return;
    uint64_t first = (c->sent + c->pending) / message_size;
    for (uint64_t i = 0; i < count; i++) c->since[(first + i) % (uint64_t)options.window] = at;
    c->pending += count * message_size;
}

/* Count what came and return how many messages it completed. */
static uint64_t count_bytes(struct connection *c, size_t size, const uint64_t *since, uint64_t at)
{
    if (memcmp(received_bytes, pattern + c->received % message_size, size))
        die("a reply differs from what was sent");
    c->received += size;
    uint64_t complete = c->received / message_size, fresh = complete - c->complete;
    for (uint64_t i = c->complete; i < complete; i++)
        record(at - since[i % (uint64_t)options.window], 1);
    c->complete = complete;
    if (size) last_progress = at;
    return fresh;
}

static void on_echo(struct connection *c)
{
    for (;;) {
        ssize_t n = get(c);
        if (n < 0) break;
        if (n == 0) die("the server closed a connection");
        uint64_t at = now(), fresh = count_bytes(c, (size_t)n, c->since, at);
        counted += fresh;
        if (fresh) allow(c, fresh, at);
        if (!has_buffered(c)) break; /* level-triggered: what is left is reported again */
    }
    if (c->pending) send_pending(c);
}

static void on_broadcast(struct connection *c)
{
    struct connection *sender = &connections[options.connections - 1];
    uint64_t receivers = (uint64_t)options.connections - 1;
    ssize_t n = get(c);
    if (n < 0) return;
    if (n == 0) die("the server closed a connection");
    if (c == sender) { /* its own copy, if the server sends one */
        c->received += (uint64_t)n;
        return;
    }
    uint64_t at = now(), fresh = count_bytes(c, (size_t)n, sender->since, at);
    counted += fresh;
    total += fresh;
    if (fresh && total % (receivers * (uint64_t)options.window) == 0) {
        allow(sender, (uint64_t)options.window, at);
        send_pending(sender);
    }
}

static bool limit_reached(void)
{
    return options.limit && total >= (uint64_t)options.limit;
}

static void churn_open(struct connection *c)
{
    static int turn;
    if (draining || limit_reached()) return;
    open_count++;
    c->since[0] = now();
    c->fd = dial(turn++);
    c->received = c->complete = c->sent = 0;
    if (put(c, pattern, message_size) != (ssize_t)message_size) die("short first send");
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    watch(c, false, EPOLL_CTL_ADD);
}

/* After its echo a client closes its half and waits for the server's: a cycle is over only when
 * the server has done its part as well. */
static void on_churn(struct connection *c)
{
    ssize_t n = get(c);
    if (n < 0) return;
    if (n > 0) {
        c->received += (uint64_t)n;
        if (c->received == message_size) shutdown(c->fd, SHUT_WR);
        return;
    }
    if (c->received != message_size) die("the server closed before it echoed");
    last_progress = now();
    record(last_progress - c->since[0], 1);
    counted++;
    total++;
    close(c->fd); /* leaves the epoll set by itself */
    open_count--;
    churn_open(c);
}

static void loop_until(uint64_t end, void (*on_readable)(struct connection *))
{
    static struct epoll_event events[EVENTS];
    for (uint64_t at = now(); at < end; at = now()) {
        if (at - last_progress > STALLED && last_progress < at) die("the server stalled");
        if (limit_reached()) return;
        int left = (int)((end - at) / 1000000) + 1;
        int n = epoll_wait(poller, events, EVENTS, left < 100 ? left : 100);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->wants_writable && events[i].events & EPOLLOUT) send_pending(c);
            if (events[i].events & ~(uint32_t)EPOLLOUT) on_readable(c);
        }
    }
}

/* Connections start a batch at a time: thousands of packets at once overflow the loopback queue
 * of the kernel, and what is lost comes again only after 200 ms. */
static void start_sending(void (*on_readable)(struct connection *))
{
    bool all = strcmp(options.mode, "broadcast") != 0;
    for (int i = 0; i < options.connections; i++) {
        struct connection *c = &connections[i];
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        watch(c, false, EPOLL_CTL_ADD);
        if (!all && i + 1 < options.connections) continue;
        allow(c, (uint64_t)options.window, now());
        send_pending(c);
        if ((i + 1) % PACE == 0) loop_until(now() + NANOSECONDS / 200, on_readable);
    }
}

static bool anything_outstanding(void)
{
    if (!strcmp(options.mode, "churn")) return open_count > 0;
    for (int i = 0; i < options.connections; i++)
        if (connections[i].received < connections[i].sent + connections[i].pending) return true;
    return false;
}

/* Let the replies on their way come in: a server should see orderly ends, not resets. */
static void drain(void (*on_readable)(struct connection *))
{
    draining = true;
    uint64_t patience = now() + NANOSECONDS;
    while (anything_outstanding() && now() < patience)
        loop_until(now() + NANOSECONDS / 100, on_readable);
}

/* Run for so long, and on until at least one message has come back: a slow server is not a dead
 * one, which loop_until() tells by itself. */
static void run_for(double seconds, void (*on_readable)(struct connection *))
{
    loop_until(now() + (uint64_t)(seconds * 1e9), on_readable);
    while (!counted && !limit_reached()) loop_until(now() + NANOSECONDS / 100, on_readable);
}

static void measure(void (*on_readable)(struct connection *))
{
    run_for(options.warmup, on_readable);
    uint64_t before = counted, begin = now();
    double cpu = cpu_seconds();
    counted = 0;
    memset(histogram, 0, sizeof histogram);
    run_for(options.seconds, on_readable);
    double wall = (double)(now() - begin) / 1e9;
    cpu = cpu_seconds() - cpu;
    uint64_t messages = counted;
    if (!messages) die("no message came back");
    printf("{\"messages\": %llu, \"warmup_messages\": %llu, \"seconds\": %.6f, \"rate\": %.1f, "
           "\"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, \"busy\": %.3f}\n",
           (unsigned long long)messages, (unsigned long long)before, wall, (double)messages / wall,
           percentile_us(0.5), percentile_us(0.99), percentile_us(0.999), cpu / wall);
    fflush(stdout);
    drain(on_readable);
}

static int hold(void)
{
    char byte;
    printf("{\"open\": %d}\n", options.connections);
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0) continue;
    return 0;
}

static void make_pattern(void)
{
    message_size = (size_t)options.size + 8;
    size_t one_window = message_size * (size_t)options.window;
    pattern_size = message_size + (one_window > RECEIVE_SIZE ? one_window : RECEIVE_SIZE);
    if (pattern_size > message_size + 16 * RECEIVE_SIZE)
        pattern_size = message_size + 16 * RECEIVE_SIZE;
    pattern = malloc(pattern_size);
    received_bytes = malloc(RECEIVE_SIZE);
    uint32_t head[2] = {htole32(TYPE_ECHO), htole32((uint32_t)options.size)};
    for (size_t i = 0; i < message_size; i++)
        pattern[i] = i < 8 ? ((unsigned char *)head)[i] : (unsigned char)(i * 31);
    for (size_t i = message_size; i < pattern_size; i++) pattern[i] = pattern[i - message_size];
}

static void read_options(int argc, char **argv)
{
    struct { const char *key; int *value; } numbers[] = {
        {"port", &options.port}, {"connections", &options.connections},
        {"window", &options.window}, {"size", &options.size}, {"tls", &options.tls},
        {"touch", &options.touch}, {"limit", &options.limit}, {"cpu", &options.cpu}};
    if (argc < 3) die("usage: load MODE port=N ...");
    snprintf(options.mode, sizeof options.mode, "%s", argv[1]);
    for (int i = 2; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value) die("not key=value: %s", argv[i]);
        *value++ = '\0';
        bool known = true;
        if (!strcmp(argv[i], "seconds")) options.seconds = atof(value);
        else if (!strcmp(argv[i], "warmup")) options.warmup = atof(value);
        else known = false;
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
            if (!strcmp(argv[i], numbers[k].key)) known = true, *numbers[k].value = atoi(value);
        if (!known) die("unknown option: %s", argv[i]);
    }
    if (options.connections < 1 || options.window < 1 || options.size < 0) die("bad number");
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    if (options.cpu >= 0) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(options.cpu, &cpus);
        if (sched_setaffinity(0, sizeof cpus, &cpus)) die("cpu: %s", strerror(errno));
    }
    make_pattern();
    set_up_tls();
    poller = epoll_create1(0);
    bool churn = !strcmp(options.mode, "churn"), broadcast = !strcmp(options.mode, "broadcast");
    void (*on_readable)(struct connection *) =
        churn ? on_churn : broadcast ? on_broadcast : on_echo;
    connections = calloc((size_t)options.connections, sizeof *connections);
    for (int i = 0; i < options.connections; i++)
        connections[i].since = calloc((size_t)options.window, sizeof(uint64_t));
    if (!churn) open_connections(!broadcast);
    if (!strcmp(options.mode, "hold")) return hold();
    last_progress = now();
    for (int i = 0; churn && i < options.connections; i++) churn_open(&connections[i]);
    if (!churn) start_sending(on_readable);
    measure(on_readable);
    return 0;
}
