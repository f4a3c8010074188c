"""MQTT on Trio: a sans-I/O codec, and the reader task that moves its bytes.

    codec        what a codec does: bytes in, messages and events out, bytes to send
    paho_codec   paho-mqtt as a codec: it believes that it has a socket
    stream       TCP and TLS, opened by Trio
    reader       one session over many connections: connect, subscribe, read, acknowledge, reconnect

No threads: paho never touches a socket, DNS and connecting are Trio's, and so is TLS.
"""
