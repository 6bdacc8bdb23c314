"""What the agents of the egress tests try, mounted at /probe beside ca.pem. One JSON line per thing tried."""
import json, os, socket, ssl, struct, sys, time

CA = "/probe/ca.pem"
PROXY = ("127.64.0.1", 3128)
SOCKS = ("127.64.0.1", 1080)
LIMIT = 8


def say(**facts):
    print(json.dumps(facts), flush=True)


def trial(probe, action):
    """Says whether `action` could be done, what it gave, and how long it took."""
    begun = time.monotonic()
    try:
        value, error = action(), None
    except (OSError, ValueError, EOFError) as e:
        value, error = None, f"{type(e).__name__}: {e}"
    took = round(time.monotonic() - begun, 3)
    say(probe=probe, ok=error is None, value=value, error=error, took=took)


def resolve(name):
    return sorted({i[4][0] for i in socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)})


def connect(host, port):
    return socket.create_connection((host, port), LIMIT)


def read_all(stream, most=4096):
    data = b""
    while len(data) < most:
        part = stream.recv(4096)
        if not part:
            break
        data += part
    return data


def request(stream, host, path="/", method="GET", extra=""):
    stream.sendall(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}Connection: close\r\n\r\n".encode())
    answer = read_all(stream).decode("latin-1")
    if not answer:
        raise EOFError("closed without an answer")
    return answer.split("\r\n")[0] + " " + answer.split("\r\n\r\n", 1)[-1].strip()


def http(host, port=80, ask=None, **more):
    with connect(host, port) as stream:
        return request(stream, ask or host, **more)


def tls(stream, name, ask=None):
    context = ssl.create_default_context(cafile=CA)
    with context.wrap_socket(stream, server_hostname=name) as secure:
        return request(secure, ask or name)


def https(host, port=443, name=None, ask=None):
    return tls(connect(host, port), name or host, ask)


def head(stream):
    data = b""
    while b"\r\n\r\n" not in data:
        part = stream.recv(1)
        if not part:
            raise EOFError(f"closed after {data!r}")
        data += part
    return data.decode("latin-1")


def by_proxy(target, then=None):
    """CONNECT through the HTTP proxy; `then` goes on with the tunnel."""
    stream = connect(*PROXY)
    stream.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("latin-1"))
    first = head(stream)
    status = first.split(" ")[1]
    if status != "200":
        raise ValueError(f"{status} {read_all(stream).decode('latin-1', 'replace')}")
    return then(stream) if then else status


def absolute(url, host):
    with connect(*PROXY) as stream:
        stream.sendall(f"GET {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1"))
        answer = read_all(stream).decode("latin-1")
        if not answer.startswith("HTTP/1.1 200"):
            raise ValueError(answer)
        return answer.split("\r\n\r\n", 1)[-1].strip()


def by_socks(name, port, then=None):
    """SOCKS5 with a name (RFC 1928, address type 3) as bytes, or with an IPv4 address."""
    stream = connect(*SOCKS)
    stream.sendall(b"\5\1\0")
    if stream.recv(2) != b"\5\0":
        raise ValueError("no method")
    if isinstance(name, bytes):
        place = b"\3" + bytes([len(name)]) + name
    else:
        place = b"\1" + socket.inet_aton(name)
    stream.sendall(b"\5\1\0" + place + struct.pack(">H", port))
    answer = stream.recv(10)
    if len(answer) < 2 or answer[1]:
        raise ValueError(f"refused with {answer[1] if len(answer) > 1 else 'nothing'}")
    return then(stream) if then else "open"


def echo(stream, text=b"marco"):
    stream.settimeout(LIMIT)
    stream.sendall(text)
    answer = b""
    while len(answer) < len(text):
        part = stream.recv(4096)
        if not part:
            break
        answer += part
    if answer != text:
        raise ValueError(f"{answer[:40]!r} came back")
    return "echo"


def question(name, kind=1, server="127.0.0.1", tcp=False, wait=3):
    """A DNS question; answers (code, number of answers)."""
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\0"
    message = struct.pack(">HHHHHH", 4711, 0x100, 1, 0, 0, 0) + labels + struct.pack(">HH", kind, 1)
    if tcp:
        with socket.create_connection((server, 53), wait) as stream:
            stream.sendall(struct.pack(">H", len(message)) + message)
            with stream.makefile("rb") as answers:
                answer = answers.read(struct.unpack(">H", answers.read(2).rjust(2, b"\0"))[0])
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(wait)
            s.sendto(message, (server, 53))
            answer = s.recv(4096)
    if len(answer) < 12:
        raise EOFError(f"{answer!r} is no answer")
    return [answer[3] & 15, struct.unpack(">H", answer[6:8])[0]]


def hello(name, ech=False):
    """A TLS 1.3 ClientHello (RFC 8446) for `name`, with an encrypted one (RFC 9849) in it if asked."""
    def extension(kind, data):
        return struct.pack(">HH", kind, len(data)) + data

    server = b"\0" + struct.pack(">H", len(name)) + name.encode()
    extensions = extension(0, struct.pack(">H", len(server)) + server)
    extensions += extension(43, b"\2\3\4") + extension(10, b"\0\4\0\x1d\0\x17")
    extensions += extension(13, b"\0\6\4\3\x08\4\4\1")
    extensions += extension(51, struct.pack(">HHH", 36, 29, 32) + os.urandom(31) + b"\1")
    if ech:
        extensions += extension(0xFE0D, b"\0\0\1\0\1\7\0\x20" + os.urandom(32) + b"\0\x20" + os.urandom(32))
    body = b"\3\3" + os.urandom(32) + b"\0" + b"\0\4\x13\1\x13\2" + b"\1\0"
    body += struct.pack(">H", len(extensions)) + extensions
    shake = b"\1" + struct.pack(">I", len(body))[1:] + body
    return b"\x16\3\1" + struct.pack(">H", len(shake)) + shake


def first_record(host, data, port=443):
    """Type of the first TLS record that comes back: 22 is a ServerHello, 21 an alert."""
    with connect(host, port) as stream:
        stream.settimeout(LIMIT)
        stream.sendall(data)
        answer = stream.recv(1)
        if answer != b"\x16":
            raise EOFError(f"{answer!r} instead of a ServerHello")
        return 22


def raw(host, port, data):
    with connect(host, port) as stream:
        stream.settimeout(LIMIT)
        stream.sendall(data)
        answer = read_all(stream)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ValueError(repr(answer[:200]))
        return answer.decode("latin-1").split("\r\n\r\n", 1)[-1].strip()
