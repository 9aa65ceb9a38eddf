"""Sending: from a frame that is written to the kernel.

``send_queue.py`` joins the parts: ``admission.py`` and ``send_limits.py`` let frames into
``backlog.py``, ``transmitter.py`` and ``writer.py`` empty it; ``waiting_writes.py`` waits for room,
``burst.py`` sends one frame on many connections, ``keyed_frames.py`` replaces what is outdated,
``send_figures.py`` has what was sent, and ``ticket.py`` tracks one submitted message.
"""
