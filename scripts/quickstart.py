"""Kubemeter in one terminal: starts `kubemeter dev` on examples/, posts a week of usage, shows it, cancels an event.

`--once` ends after that. The exit code is 0 only if every number is the one that this script computed by itself, with
decimal arithmetic, from the events that it made.
"""

import argparse
import collections
import datetime
import decimal
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import parts

TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or parts.ROOT / "target").resolve()
KUBEMETER = TARGET / os.environ.get("PROFILE", "release") / "kubemeter"
# As in examples/customers.yaml.
SUBJECTS = {"acme-prod": "acme", "acme-eu": "acme", "globex": "globex", "initech": "initech"}
DAYS = 7
BATCH = 500
DEADLINE = 60  # seconds, for anything that has to happen

COLOURS = sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def paint(text, code):
    return f"\033[{code}m{text}\033[0m" if COLOURS else text


def bold(text):
    return paint(text, "1")


def dim(text):
    return paint(text, "2")


# --- the events ---------------------------------------------------------------------------------------------------


def make_events(start):
    """A week of usage, the same one on every run but for the date: CloudEvents, in the order of their time."""
    chance = random.Random(20_26)
    events = []

    def add(kind, source, name, subject, time, data):
        stamp = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        events.append(
            {"specversion": "1.0", "type": kind, "source": source, "id": name, "subject": subject, "time": stamp, "data": data}
        )

    def moment():
        # Most people work by day.
        day, hour = chance.randrange(DAYS), min(23.9, max(0.0, chance.gauss(14, 4)))
        return start + datetime.timedelta(days=day, hours=hour, milliseconds=chance.randrange(60_000))

    def subject():
        return chance.choices(list(SUBJECTS), weights=(50, 20, 25, 5))[0]

    for number in range(2_400):
        method, path = chance.choices(
            (("GET", "/v1/items"), ("GET", "/v1/items/{id}"), ("POST", "/v1/items"), ("DELETE", "/v1/items/{id}")), weights=(50, 30, 15, 5)
        )[0]
        status = chance.choices((200, 404, 500), weights=(95, 4, 1))[0]
        add("api.request", "api-gateway", f"req-{number}", subject(), moment(), {"method": method, "path": path, "status": status})

    for number in range(400):
        model, who, when = chance.choices(("small", "large"), weights=(3, 1))[0], subject(), moment()
        read, cached, written = chance.randrange(50, 8_000), chance.randrange(4_000), chance.randrange(10, 1_200)
        # A cached token is a tenth of one: decimals are kept exactly.
        for direction, tokens in (("input", read + cached / 10), ("output", written)):
            data = {"tokens": tokens, "model": model, "direction": direction}
            add("llm.completion", "inference", f"chat-{number}-{direction}", who, when, data)

    size = dict.fromkeys(SUBJECTS, 40_000_000_000)
    for hour in range(DAYS * 24):
        for who in SUBJECTS:
            size[who] += chance.randrange(-300_000_000, 500_000_000)
            data = {"bytes": size[who], "bucket": "uploads"}
            add("storage.reading", "storage", f"{who}-{hour}", who, start + datetime.timedelta(hours=hour), data)
    events.sort(key=lambda event: event["time"])
    return events


# --- what the numbers must be ---------------------------------------------------------------------------------------


def expect(events, kind, value, combine, *group):
    """Usage by group: `combine` of the decimal `value` of each event of a type."""
    values = collections.defaultdict(list)
    for event in events:
        if event["type"] == kind:
            values[tuple(of(event) for of in group)].append(decimal.Decimal(str(value(event))))
    return {key: combine(all_of_it) for key, all_of_it in values.items()}


def customer(event):
    return SUBJECTS[event["subject"]]


def day(event):
    return event["time"][:10]


def field(name):
    return lambda event: event["data"][name]


# --- the API --------------------------------------------------------------------------------------------------------


class Failed(Exception):
    """It can't go on; said with the log of `kubemeter dev`, which has the reason."""


class Api:
    def __init__(self, url):
        self.url = url

    def call(self, method, path, body=None, kind="application/json"):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers={"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise Failed(f"{method} {path} answered {error.code}: {error.read().decode(errors='replace')}") from None
        return json.loads(text) if text else None

    def usage(self, meter, **query):
        """Usage as {group: value}; `groupBy` may have several names."""
        groups = query.get("groupBy", [])
        answer = self.call("GET", f"/usage/{meter}?{urllib.parse.urlencode(query, doseq=True)}")
        found = {}
        for row in answer["data"]:
            window = [row["windowStart"][:10]] if "windowSize" in query else []
            names = [row["customer"] if name == "customer" else row["groupBy"][name] for name in groups]
            found[tuple(window + names)] = decimal.Decimal(row["value"])
        return found


# --- the terminal ---------------------------------------------------------------------------------------------------


def title(text, query=""):
    print(f"\n{bold(text)}" + (f"  {dim(query)}" if query else ""))


def table(head, rows):
    rows = [[f"{cell:,}" if isinstance(cell, (int, decimal.Decimal)) else cell for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    numbers = [all(row[column][:1].isdigit() and "," in row[column] or row[column].replace(".", "").isdigit() for row in rows) for column in range(len(head))]

    def line(cells):
        padded = (cell.rjust(width) if number else cell.ljust(width) for cell, width, number in zip(cells, widths, numbers))
        return "  " + "  ".join(padded).rstrip()

    print(dim(line(head)))
    for row in rows:
        print(line(row))


class Checks:
    def __init__(self):
        self.right, self.wrong = 0, []

    def same(self, what, found, expected):
        if found == expected:
            self.right += 1
            return
        self.wrong.append(what)
        differing = [key for key in {**found, **expected} if found.get(key) != expected.get(key)] if isinstance(found, dict) else []
        print(paint(f"  ✗ {what} is not as expected", "31"))
        for key in sorted(differing)[:10]:
            print(f"    {key}: {found.get(key)}, expected {expected.get(key)}")
        if not differing:
            print(f"    {found}, expected {expected}")


# --- kubemeter dev --------------------------------------------------------------------------------------------------


class Dev:
    """`kubemeter dev` with a data folder of its own, which goes with it."""

    def __init__(self):
        if not KUBEMETER.exists():
            raise SystemExit(f"quickstart: no {KUBEMETER}: run `make quickstart`, which builds it")
        folder = parts.ROOT / ".quickstart"
        folder.mkdir(exist_ok=True)
        self.data = Path(tempfile.mkdtemp(prefix="data-", dir=folder))
        self.log = self.data / "kubemeter.log"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        # What the user's shell says of another kubemeter is not meant here.
        kept = ("KUBEMETER_CACHE", "KUBEMETER_ENGINE", "KUBEMETER_LOG")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KUBEMETER_") or name in kept}
        command = [KUBEMETER, "dev", "--manifests", "examples", "--data-dir", self.data, "--listen", f"127.0.0.1:{port}", "--stop-with-stdin"]
        with self.log.open("wb") as log:
            # In a group of its own: Ctrl-C is this script's, which then ends it in order. Should the script be killed,
            # the end of its stdin tells it.
            self.process = subprocess.Popen(
                command, cwd=parts.ROOT, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, what, ready):
        began = time.monotonic()
        while True:
            if self.process.poll() is not None:
                raise Failed("kubemeter dev ended")
            answer = None
            try:
                answer = ready()
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            if answer:
                return answer
            if time.monotonic() - began > DEADLINE:
                raise Failed(f"{what}: not within {DEADLINE} s")
            time.sleep(0.05)

    def said(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.data, ignore_errors=True)


def free_port():
    for port in (8080, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                print("Port 8080 is taken: another one is used.")
                continue
            return probe.getsockname()[1]
    raise SystemExit("quickstart: no free port on 127.0.0.1")


def is_up(url):
    def ask():
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
                return answer.status == 200
        except urllib.error.HTTPError:
            return False

    return ask


# --- the tour -------------------------------------------------------------------------------------------------------


def post(api, events):
    """Posts in batches; returns (accepted, rejected, seconds)."""
    accepted, rejected, began = 0, [], time.monotonic()
    for first in range(0, len(events), BATCH):
        answer = api.call("POST", "/events", events[first : first + BATCH], "application/cloudevents-batch+json")
        accepted += answer["accepted"]
        rejected += answer["rejected"]
    return accepted, rejected, time.monotonic() - began


def ingest(api, events, checks):
    chance = random.Random(7)
    late = events.pop(300)
    bad = {**events[-1], "type": "llm.completion", "source": "inference", "id": "chat-bad", "data": {"tokens": "abc", "model": "small", "direction": "input"}}
    again = chance.sample(events, 400)

    title("1. Events", "POST /events")
    accepted, rejected, seconds = post(api, events)
    print(f"  {accepted:,} events in batches of {BATCH}: {seconds:.2f} s, each confirmed by ClickHouse before the answer")
    checks.same("accepted", (accepted, rejected), (len(events), []))
    accepted, _, _ = post(api, again)
    print(f"  {accepted:,} of them once more, as a client does that got no answer: counted once")
    checks.same("accepted again", accepted, len(again))
    accepted, rejected, _ = post(api, [late, bad])
    print(f"  1 that comes {late_by(late)} days late: counted on its own day")
    checks.same("late event", accepted, 1)
    events.append(late)
    codes = [(reject["index"], reject["id"], reject["code"]) for reject in rejected]
    checks.same("bad event", codes, [(1, "chat-bad", "invalid_value")])
    for reject in rejected:
        print(f"  1 that is wrong: {reject['code']}: {reject['message']}")


def late_by(event):
    return (datetime.datetime.now(datetime.timezone.utc).date() - datetime.date.fromisoformat(day(event))).days


def show(api, events, window, checks):
    title("2. API calls by customer and day", "GET /usage/api-calls?windowSize=DAY&groupBy=customer")
    expected = expect(events, "api.request", lambda _: 1, sum, day, customer)
    found = api.usage("api-calls", windowSize="DAY", groupBy=["customer"], **window)
    checks.same("API calls by customer and day", found, expected)
    customers = sorted({who for _, who in found})
    rows = [[when, *(found.get((when, who), decimal.Decimal(0)) for who in customers)] for when in sorted({when for when, _ in found})]
    totals = api.usage("api-calls", groupBy=["customer"], **window)
    checks.same("API calls by customer", totals, expect(events, "api.request", lambda _: 1, sum, customer))
    table(["day", *customers], [*rows, ["total", *(totals.get((who,), decimal.Decimal(0)) for who in customers)]])

    title("3. LLM tokens by model and direction", "GET /usage/llm-tokens?groupBy=model&groupBy=direction")
    found = api.usage("llm-tokens", groupBy=["model", "direction"], **window)
    checks.same("tokens by model and direction", found, expect(events, "llm.completion", field("tokens"), sum, field("model"), field("direction")))
    table(["model", "direction", "tokens"], [[*key, found[key]] for key in sorted(found)])

    title("4. Peak storage by customer", "GET /usage/storage?groupBy=customer")
    found = api.usage("storage", groupBy=["customer"], **window)
    checks.same("storage by customer", found, expect(events, "storage.reading", field("bytes"), max, customer))
    table(["customer", "bytes"], [[*key, found[key]] for key in sorted(found)])


def cancel(api, events, window, checks):
    victim = max((event for event in events if event["type"] == "llm.completion"), key=lambda event: (event["data"]["tokens"], event["id"]))
    who = customer(victim)
    title("5. Cancel one event", "DELETE /usage")
    query = {**window, "customer": who, "groupBy": ["customer"]}
    tokens = [event for event in events if customer(event) == who]
    before = api.usage("llm-tokens", **query)
    checks.same("tokens before", before, expect(tokens, "llm.completion", field("tokens"), sum, customer))
    named = {"source": victim["source"], "id": victim["id"]}
    answer = api.call("DELETE", "/usage", {"events": [named], "reason": "billed by mistake"})
    checks.same("cancelled", (answer["cancelled"], answer["notFound"]), (1, []))
    after = api.usage("llm-tokens", **query)
    kept = [event for event in tokens if event is not victim]
    checks.same("tokens after", after, expect(kept, "llm.completion", field("tokens"), sum, customer))
    table(["", "tokens of " + who], [["before", before[(who,)]], [f"without {victim['id']}", after[(who,)]]])
    return answer["cancellationId"]


def next_steps(api, window, cancellation):
    title("Try it", f"{api.url} is up until Ctrl-C")
    span = urllib.parse.urlencode(window)
    event = {"specversion": "1.0", "type": "llm.completion", "source": "me", "id": "1", "subject": "acme-prod", "data": {"tokens": 1250, "model": "large", "direction": "input"}}
    for what, line in (
        ("post an event; once more changes nothing", f"curl {api.url}/events -H 'content-type: application/cloudevents+json' -d '{json.dumps(event, separators=(',', ':'))}'"),
        ("acme's tokens by hour, as CSV", f"curl -H 'accept: text/csv' '{api.url}/usage/llm-tokens?windowSize=HOUR&customer=acme'"),
        ("acme's calls, days as Paris has them", f"curl '{api.url}/usage/api-calls?windowSize=DAY&windowTimeZone=Europe/Paris&customer=acme&{span}'"),
        ("undo the cancellation", f"curl -X POST {api.url}/usage/cancellations/{cancellation}/revert"),
        ("the event that was refused", f"curl {api.url}/events/rejected"),
        ("the meters; they are examples/*.yaml: edit one", f"curl {api.url}/meters"),
    ):
        print(f"  {dim('# ' + what)}\n  {line}")


def tour(dev, once):
    api, checks = Api(dev.url), Checks()
    dev.wait("kubemeter dev", is_up(dev.url))
    meters = dev.wait(
        "the meters' tables",
        lambda: (items := api.call("GET", "/meters")["items"]) and all((meter.get("status") or {}).get("ready") for meter in items) and items,
    )
    print(f"{bold('Kubemeter')} with ClickHouse inside, on examples/: {', '.join(meter['meterId'] for meter in meters)}; API at {dev.url}")

    midnight = datetime.datetime.now(datetime.timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    start = midnight - datetime.timedelta(days=DAYS)
    window = {"from": start.isoformat().replace("+00:00", "Z"), "to": midnight.isoformat().replace("+00:00", "Z")}
    events = make_events(start)
    ingest(api, events, checks)
    show(api, events, window, checks)
    cancellation = cancel(api, events, window, checks)

    if checks.wrong:
        print(paint(f"\n✗ {len(checks.wrong)} of {len(checks.wrong) + checks.right} answers are wrong: {', '.join(checks.wrong)}", "31"))
    else:
        print(paint(f"\n✓ {checks.right} answers, each as computed here from the events with decimal arithmetic", "32"))
    if not once:
        next_steps(api, window, cancellation)
        try:
            dev.process.wait()
            raise Failed("kubemeter dev ended")
        except KeyboardInterrupt:
            print("\nStopping.")
    return 1 if checks.wrong else 0


def main():
    arguments = argparse.ArgumentParser(description="Shows Kubemeter at work.")
    arguments.add_argument("--once", action="store_true", default=bool(os.environ.get("ONCE")), help="end after showing")
    once = arguments.parse_args().once

    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    sys.stdout.reconfigure(line_buffering=True)
    dev = None
    try:
        dev = Dev()
        return tour(dev, once)
    except KeyboardInterrupt:
        return 130
    except (Failed, OSError) as failed:
        print(f"quickstart: {failed}", file=sys.stderr)
        if dev:
            print(f"kubemeter dev said:\n{dev.said()}", file=sys.stderr)
        return 1
    finally:
        if dev:
            dev.stop()


if __name__ == "__main__":
    sys.exit(main())
