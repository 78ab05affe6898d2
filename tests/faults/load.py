"""A load of several clients that remembers what was promised to it, and checks it afterwards.

Each client is the only writer of its own keys, so that what a key may hold is known exactly: the last acknowledged
value, or one of the values whose writes ended without an answer (those may take effect at any later time).
"""

import hashlib
import random
import threading
import time

import wire

BUCKET = "faults"
MIB = 1 << 20
# Around the limits inside the server: inline rows, frames, packs, whole stripes.
SIZES = [0, 100, 4096, 5000, 65_492, 70_000, 300_000, MIB + 1, 4 * MIB]
WEIGHTS = [2, 20, 20, 15, 8, 10, 8, 4, 1]
PARTS = [5 * MIB, 123_456]
# Between two requests of a client: the servers, not the interpreter, shall be busy.
REST_SECONDS = 0.004
ABSENT = None


def body(key, serial, size):
    """The bytes of one write: no two writes share any."""
    return random.Random(f"{key} {serial}").randbytes(size)


def digest(content):
    return hashlib.sha256(content).hexdigest()


class Key:
    """What a key may hold."""

    def __init__(self):
        self.value = ABSENT
        self.maybe = set()
        self.serial = 0

    def allows(self, found):
        return found == self.value or found in self.maybe


class Client(threading.Thread):
    """One closed loop over its own keys."""

    def __init__(self, load, number):
        super().__init__(daemon=True)
        self.load = load
        self.number = number
        self.rng = random.Random(f"{load.seed} {number}")
        self.s3 = load.connect()
        self.keys = {}
        self.acks = []
        self.problems = []
        self.reads = 0
        self.refusals = {}

    def run(self):
        while not self.load.ends.is_set():
            try:
                self.step()
            except Exception as error:  # A broken client must not look like a quiet one.
                self.problems.append(f"client {self.number}: {error!r}")
                return
            time.sleep(REST_SECONDS)

    def step(self):
        dice = self.rng.random()
        present = [key for key, state in self.keys.items() if state.value is not ABSENT] if dice < 0.45 else []
        if dice < 0.30 and present:
            self.read(self.rng.choice(present))
        elif dice < 0.36 and present:
            self.write(self.rng.choice(present), delete=True)
        elif dice < 0.45 and present:
            self.write(self.rng.choice(present))
        else:
            key = f"c{self.number}/{len(self.keys):06}"
            self.keys[key] = Key()
            self.write(key, parts=dice > 0.985)

    def write(self, key, delete=False, parts=False):
        state = self.keys[key]
        state.serial += 1
        if delete:
            contents, value = [], ABSENT
        elif parts:
            contents = [body(key, f"{state.serial}.{index}", size) for index, size in enumerate(PARTS)]
            value = digest(b"".join(contents))
        else:
            contents = [body(key, state.serial, self.rng.choices(SIZES, WEIGHTS)[0])]
            value = digest(contents[0])
        began = time.monotonic()
        try:
            if delete:
                self.s3.delete(BUCKET, key)
            elif parts:
                self.s3.put_parts(BUCKET, key, contents)
            else:
                self.s3.put(BUCKET, key, contents[0])
        except wire.Unknown:
            state.maybe.add(value)
            return
        except wire.Refused as refused:
            self.refusals[str(refused)] = self.refusals.get(str(refused), 0) + 1
            # A multipart upload is several requests: a late refusal may follow a Complete that took effect.
            if parts:
                state.maybe.add(value)
            return
        state.value = value
        self.acks.append((began, time.monotonic(), sum(map(len, contents))))

    def read(self, key):
        try:
            content = self.s3.get_or_none(BUCKET, key)
        except (wire.Refused, wire.Unknown) as error:
            self.problems.append(f"{key}: an acknowledged object could not be read: {error}")
            return
        self.reads += 1
        found = ABSENT if content is None else digest(content)
        if not self.keys[key].allows(found):
            self.problems.append(f"{key}: read {describe(content)}, which was never written or was replaced")


def describe(content):
    return "nothing" if content is None else f"{len(content)} bytes with SHA-256 {digest(content)[:12]}…"


class Load:
    """All clients; a `with` block around the time that they run."""

    def __init__(self, cluster, clients=8, seed=1):
        self.cluster = cluster
        self.seed = seed
        self.ends = threading.Event()
        self.connect().make_bucket(BUCKET)
        self.clients = [Client(self, number) for number in range(clients)]

    def connect(self):
        return wire.S3(self.cluster.endpoint, self.cluster.access_key, self.cluster.secret_key)

    def __enter__(self):
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self.ends.set()
        for client in self.clients:
            client.join(120)
            if client.is_alive():
                client.problems.append(f"client {client.number} hangs in a request")

    def acks(self):
        return sorted(ack for client in self.clients for ack in list(client.acks))

    def wait_for_acks(self, count, seconds=30):
        """Waits until `count` more writes were acknowledged; True when they came."""
        wanted = len(self.acks()) + count
        deadline = time.monotonic() + seconds
        while len(self.acks()) < wanted:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def wait_for_write_since(self, since, seconds, size_min=0):
        """Waits for an acknowledgement of a write of `size_min` bytes that began after `since`; its seconds, or None."""
        while time.monotonic() < since + seconds:
            ends = [end for begin, end, size in self.acks() if begin >= since and size >= size_min]
            if ends:
                return min(ends) - since
            time.sleep(0.02)
        return None

    def seconds_without_write(self, since, until):
        """The longest stretch of `since..until` without an acknowledgement."""
        ends = sorted(end for _, end, _ in self.acks() if since <= end <= until)
        edges = [since, *ends, until]
        return max(later - earlier for earlier, later in zip(edges, edges[1:]))

    def problems(self):
        return [problem for client in self.clients for problem in client.problems]

    def check_everything(self):
        """Reads every key and lists the bucket; returns what is wrong and how many keys were read."""
        problems, s3 = [], self.connect()
        states = {key: state for client in self.clients for key, state in client.keys.items()}
        for key, state in states.items():
            content = s3.get_or_none(BUCKET, key)
            found = ABSENT if content is None else digest(content)
            if not state.allows(found):
                wanted = "nothing" if state.value is ABSENT else f"SHA-256 {state.value[:12]}…"
                problems.append(f"{key}: {describe(content)} where {wanted} was acknowledged")
        listed = s3.keys(BUCKET)
        if listed != sorted(set(listed)):
            problems.append("LIST is out of order or has a key twice")
        seen = set(listed)
        problems += [f"{key}: in LIST, but never written" for key in seen - states.keys()]
        for key, state in states.items():
            if state.value is not ABSENT and ABSENT not in state.maybe and key not in seen:
                problems.append(f"{key}: acknowledged, but not in LIST")
            if state.value is ABSENT and not state.maybe and key in seen:
                problems.append(f"{key}: deleted or never acknowledged, but in LIST")
        return problems, len(states)
