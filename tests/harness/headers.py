"""Spellings of header names and lines that no listener may take for what they pretend to be."""

HOP_BY_HOP = [
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "trailers"),
    ("Trailer", "X-Sum"),
    ("Proxy-Authorization", "Basic eDp5"),
    ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
    ("Upgrade", "h2c"),
]
FORWARDING = [
    ("X-Forwarded-For", "6.6.6.6"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "evil.test"),
    ("X-Forwarded-Port", "444"),
    ("X-Forwarded-Prefix", "/evil"),
    ("X-Forwarded-Uri", "/evil"),
    ("X-Forwarded-Whatever", "evil"),
    ("Forwarded", "for=6.6.6.6;host=evil.test"),
    ("X-Real-IP", "6.6.6.6"),
]
"""Forged headers that a proxy in front may set."""
SIGNED_IN = [
    ("X-Forwarded-User", "evil"),
    ("X-Forwarded-Email", "evil@evil.test"),
    ("X-Forwarded-Groups", "admins"),
    ("X-Forwarded-Preferred-Username", "evil"),
    ("X-Forwarded-Access-Token", "evil"),
]
"""The same, of who has signed in, as oauth2-proxy tells it."""
STRIPPED = [
    ("X-HTTP-Method-Override", "DELETE"),
    ("X-Method-Override", "DELETE"),
    ("X-HTTP-Method", "DELETE"),
    ("X-HTTP-Path-Override", "/evil"),
    ("X-Override-URL", "/evil"),
    ("X-Original-URL", "/evil"),
    ("X-Original-URI", "/evil"),
    ("X-Original-Method", "DELETE"),
    ("X-Rewrite-URL", "/evil"),
    ("Proxy", "http://evil.test"),
    ("True-Client-IP", "6.6.6.6"),
    ("CF-Connecting-IP", "6.6.6.6"),
    ("X-Client-IP", "6.6.6.6"),
    ("X-Cluster-Client-IP", "6.6.6.6"),
    ("Forwarded-For", "6.6.6.6"),
    ("Remote-User", "evil"),
    ("X-Remote-User", "evil"),
]
"""Headers that nobody may send to the upstream, not even a trusted proxy, unless `identity.keep` names them."""
STRIPPED_BY_PATTERN = [
    ("X-Original-Host", "evil.test"),
    ("X-Original-Forwarded-For", "6.6.6.6"),
    ("X-Rewrite-Path", "/evil"),
    ("X-Envoy-Original-Path", "/evil"),
    ("X-Envoy-External-Address", "6.6.6.6"),
    ("X-Accel-Redirect", "/evil"),
    ("X-Accel-Mapping", "/=/evil"),
    ("X-Auth-Request-User", "evil"),
    ("X-Auth-Request-Preferred-Username", "evil"),
    ("X-SSL-Client-Verify", "evil"),
    ("X-SSL-Client-S-DN", "CN=evil"),
]
"""The same, of families that have no end (`X-Envoy-*`)."""
FRAMING_DISGUISES = [
    "Transfer_Encoding",
    "transfer.encoding",
    "Transfer--Encoding",
    "Content_Length",
    "content--length",
    "Content.Length",
    "Content~Length",
]
"""Names that a careless server treats as framing headers."""
BROKEN_LINES = [
    b"X-A: 1\r\n X-Auth-Subject: me\r\n",
    b"X-A: 1\r\n\tX-Auth-Subject: me\r\n",
    b"X-A:\r\n folded\r\n",
    b" X-Auth-Subject: me\r\n",
    b"Authorization: Bearer\r\n hv_live_x\r\n",
    b"X-Auth-Subject : me\r\n",
    b"X-Auth-Subject\t: me\r\n",
    b"X-Auth Subject: me\r\n",
    b"X-Auth-Subject\x00: me\r\n",
    b"X-Auth-Subj\xe9ct: me\r\n",
    b"X-Auth-Subject(x): me\r\n",
    b": me\r\n",
    b"X-Auth-Subject\r\n",
    b"X-A: 1\rX-Auth-Subject: me\r\n",
    b"X-A: 1\r\rX-Auth-Subject: me\r\n",
    b"X-A: 1\nX-Auth-Subject: me\r\n",
    b"X-A: 1\x00X-Auth-Subject: me\r\n",
    b"X-A: 1\x0bX-Auth-Subject: me\r\n",
    b"X-A: 1\x7f\r\n",
]
"""Lines that servers parse differently, after a Host (RFC 9112 §2.2, §5)."""
HOSTS = [
    b"a",
    b"api.test:8080",
    b"[::1]:80",
    b"127.0.0.1",
    b"a_b-c.d",
    b"a:",
    b"[::1]:",
    b"a~b",
    b"0.0.0.0=5000",
    b"a!$&'()*+;=b",
]
BAD_HOSTS = [
    b"",
    b"a,b",
    b"u@h",
    b"h/p",
    b"h/p?",
    b"h?",
    b"h#",
    b"h:x",
    b"h:80:80",
    b"h:port",
    b"h p",
    b"h\tp",
    b"h\xe9",
    b"h%00",
    b"h\x00",
    b"\\h",
    b"[::1",
]


def disguises(name: str) -> list[str]:
    """Names that a server may take for `name`, because it does not tell case or separators apart (as CGI does)."""
    return [
        name,
        name.upper(),
        name.lower(),
        name.swapcase(),
        name.replace("-", "_"),
        name.replace("-", "."),
        name.replace("-", "--"),
        name.replace("-", "__"),
        name.replace("-", "-_."),
        name.replace("-", "_", 1),
        name.lower().replace("-", "_-.", 1),
        *[name.replace("-", separator) for separator in "~!|'*+`^#$%&"],
    ]
