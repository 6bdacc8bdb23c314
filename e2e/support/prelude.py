import json, os, socket, sys, time

def say(**facts):
    print(json.dumps(facts), flush=True)

def tcp(probe, host, port, tries=2, wait=2):
    """One line: whether a connection to the port can be made. A refusal by the other side counts as reached."""
    error = None
    for _ in range(tries):
        try:
            with socket.create_connection((host, port), wait):
                return say(probe=probe, open=True)
        except ConnectionRefusedError:
            return say(probe=probe, open=True, error="refused by the other side")
        except OSError as e:
            error = str(e)
            time.sleep(0.5)
    say(probe=probe, open=False, error=error)

def udp(probe, host, port, tries=3):
    error = None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        for _ in range(tries):
            try:
                s.sendto(b"ping", (host, port))
                if s.recv(16) == b"ping":
                    return say(probe=probe, open=True)
            except OSError as e:
                error = str(e)
                time.sleep(0.5)
    say(probe=probe, open=False, error=error)

def attempt(probe, action):
    """One line: whether an action could be done, and the error number if not."""
    try:
        value = action()
        say(probe=probe, ok=True, value=value if isinstance(value, (str, int, float, list)) else None)
    except OSError as e:
        say(probe=probe, ok=False, errno=e.errno, error=str(e))

def write(path, text="x"):
    def action():
        with open(path, "w") as f:
            f.write(text)
    return action

def read(path):
    def action():
        with open(path) as f:
            return f.read()
    return action

