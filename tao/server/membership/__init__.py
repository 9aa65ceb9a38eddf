"""How connections are found: by groups, by the identity of the peer, and in a cluster.

``groups.py`` has the groups that users hold, and ``group_index.py`` keeps their members;
``identities.py`` says which connection a peer has, and ``names.py`` checks the names of both.
``cluster_member.py`` makes a server a member of a cluster.
"""
