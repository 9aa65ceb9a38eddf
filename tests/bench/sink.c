/* The trivial server that shows how much the load generator can do: it sends back what it reads,
 * byte by byte the same, without framing or handlers.
 *
 *     sink [broadcast=1] [cert=FILE key=FILE]
 *
 * Prints `LISTENING <port>`.  With `broadcast=1` what one connection sends goes to all the others.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/ssl.h>
#else
typedef void SSL;
#endif

enum { BUFFER = 256 * 1024, EVENTS = 512, MOST = 16384 };

static SSL *sessions[MOST];
static int open_fds[MOST], open_count;
static char buffer[BUFFER];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void wait_for(int fd, short what)
{
    struct pollfd p = {.fd = fd, .events = what};
    poll(&p, 1, 10000);
}

/* Waiting for one slow reader delays the others; the load generator always reads. */
static bool put_all(int fd, const char *bytes, ssize_t size)
{
    while (size > 0) {
        ssize_t n;
#ifdef WITH_TLS
        if (sessions[fd]) n = SSL_write(sessions[fd], bytes, (int)size);
        else
#endif
            n = send(fd, bytes, (size_t)size, MSG_NOSIGNAL);
        if (n > 0) {
            bytes += n;
            size -= n;
        } else if (sessions[fd] || errno == EAGAIN) {
            wait_for(fd, POLLOUT);
        } else {
            return false;
        }
    }
    return true;
}

static ssize_t get(int fd)
{
#ifdef WITH_TLS
    if (sessions[fd]) {
        int n = SSL_read(sessions[fd], buffer, BUFFER);
        if (n > 0) return n;
        if (SSL_get_error(sessions[fd], n) != SSL_ERROR_WANT_READ) return 0;
        errno = EAGAIN;
        return -1;
    }
#endif
    return recv(fd, buffer, BUFFER, 0);
}

static void close_one(int fd)
{
#ifdef WITH_TLS
    if (sessions[fd]) SSL_free(sessions[fd]);
#endif
    sessions[fd] = NULL;
    for (int i = 0; i < open_count; i++)
        if (open_fds[i] == fd) open_fds[i] = open_fds[--open_count];
    close(fd);
}

static void pass_on(int fd, bool broadcast)
{
    for (;;) {
        ssize_t n = get(fd);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            close_one(fd);
            return;
        }
        if (broadcast) {
            for (int i = 0; i < open_count; i++)
                if (open_fds[i] != fd) put_all(open_fds[i], buffer, n);
        } else if (!put_all(fd, buffer, n)) {
            close_one(fd);
            return;
        }
#ifdef WITH_TLS
        if (sessions[fd] && SSL_has_pending(sessions[fd])) continue;
#endif
        return;
    }
}

static void accept_one(int listener, int poller, void *tls)
{
    int on = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0) return;
    if (fd >= MOST) die("too many connections");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
#ifdef WITH_TLS
    if (tls) {
        sessions[fd] = SSL_new(tls);
        SSL_set_fd(sessions[fd], fd);
        while (SSL_accept(sessions[fd]) != 1) wait_for(fd, POLLIN);
    }
#else
    (void)tls;
#endif
    open_fds[open_count++] = fd;
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    if (tls) pass_on(fd, false); /* the handshake may have read the first message already */
}

static void *tls_context(const char *certificate, const char *key)
{
#ifdef WITH_TLS
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(context, certificate) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1)
        die("certificate");
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_default_read_buffer_len(context, BUFFER);
    return context;
#else
    (void)certificate, (void)key;
    fprintf(stderr, "sink: built without TLS\n");
    exit(1);
#endif
}

static int listen_somewhere(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 1024)) die("listen");
    getsockname(fd, (struct sockaddr *)&at, &size);
    printf("LISTENING %d\n", ntohs(at.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv)
{
    bool broadcast = false;
    const char *certificate = NULL, *key = NULL;
    for (int i = 1; i < argc; i++) {
        if (!strncmp(argv[i], "cert=", 5)) certificate = argv[i] + 5;
        if (!strncmp(argv[i], "key=", 4)) key = argv[i] + 4;
        if (!strcmp(argv[i], "broadcast=1")) broadcast = true;
    }
    void *tls = certificate && key ? tls_context(certificate, key) : NULL;
    static struct epoll_event events[EVENTS];
    int listener = listen_somewhere(), poller = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == listener) accept_one(listener, poller, tls);
            else pass_on(events[i].data.fd, broadcast);
        }
    }
}
