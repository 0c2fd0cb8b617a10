"""The commands that are clients, against a service in a process of its own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import jwt
import pytest

from pushsse.cli import COMMANDS
from tests.answering import answering_beside
from tests.cli.running import LIMIT_S, Served, environment, pushsse, served
from tests.cli.test_serve import SECRET
from tests.keys import PRIVATE, jwk, key_set
from tests.starting import Started, start
from tests.waiting import until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("node")) as running:
        yield running


@contextmanager
def listening(node: Served, name: str, *arguments: str) -> Iterator[tuple[Started, Path]]:
    out = node.folder / name
    with out.open("w") as file:
        process = start(
            "listen",
            "--json",
            "--url",
            node.url,
            *arguments,
            stdout=file,
            cwd=node.folder,
            env=environment({}),
        )
    try:
        until(lambda: '"event":"ready"' in out.read_text(), "ready")
        yield process, out
    finally:
        process.kill()
        process.wait()


def _messages(out: Path) -> list[object]:
    # Whole lines alone, and U+2028 doesn't end one.
    heard = [json.loads(line) for line in out.read_text().split("\n")[:-1]]
    return [each["data"]["message"] for each in heard if "message" in each["data"]]


def test_published_events_are_listened_to_in_order(node: Served) -> None:
    with listening(node, "ann", "--user", "ann", "--count", "4") as (process, out):
        assert node.run("publish", "news", "one", "--to", "all", "--desc", "first").returncode == 0
        assert node.run("publish", "news", '{"n": 2}', "--json", "--to", "ann,bo").returncode == 0
        assert node.run("publish", "news", "for bo", "--to", "bo").returncode == 0
        lines = node.folder / "events.ndjson"
        lines.write_text('{"type":"a","to":"all","message":"\\u2028"}\n{"type":"b","to":"all","message":4}\n')
        assert len(node.run("publish", "--file", str(lines)).stdout.split()) == 2
        assert process.wait(LIMIT_S) == 0
        assert _messages(out) == ["one", {"n": 2}, "\u2028", 4]


def test_own_id_makes_a_repeat_harmless(node: Served) -> None:
    with listening(node, "id", "--user", "ida") as (_, out):
        for text in ("once", "twice"):
            assert node.run("publish", "news", text, "--to", "ida", "--id", "same").stdout.strip() == "same"
        node.run("publish", "news", "end", "--to", "ida")
        until(lambda: "end" in _messages(out), "end")
        assert _messages(out) == ["once", "end"]


def test_what_is_refused_is_one_line_and_status_1(node: Served) -> None:
    ended = node.run("publish", "bad type", "x", "--to", "all")
    assert ended.returncode == 1
    assert ended.stderr.startswith("pushsse: invalid: $.type")
    assert len(ended.stderr.splitlines()) == 1


def test_refused_lines_of_a_file_are_named(node: Served) -> None:
    lines = node.folder / "mixed.ndjson"
    lines.write_text('{"type":"a","to":"all","message":1}\n\n{"type":1}\n')
    ended = node.run("publish", "--file", str(lines))
    assert ended.returncode == 1
    assert len(ended.stdout.split()) == 1
    assert ended.stderr.startswith("line 3: ")


def test_service_that_is_away_is_one_line(tmp_path: Path) -> None:
    ended = pushsse(tmp_path, "prefs", "--url", "http://127.0.0.1:1")
    assert ended.returncode == 1
    assert ended.stderr == "pushsse: http://127.0.0.1:1: [Errno 111] Connection refused\n"


def test_switched_off_type_stays_away(node: Served) -> None:
    node.run("publish", "sport", "x", "--to", "all")
    until(lambda: "sport" in node.run("prefs", "--user", "cy").stdout, "type in the catalogue")
    assert "off        sport" in node.run("prefs", "off", "sport", "--user", "cy").stdout
    with listening(node, "cy", "--user", "cy") as (_, out):
        node.run("publish", "sport", "unseen", "--to", "all")
        assert "on         sport" in node.run("prefs", "on", "sport", "--user", "cy").stdout
        node.run("publish", "sport", "seen", "--to", "all")
        until(lambda: "seen" in _messages(out), "event")
        assert _messages(out) == ["seen"]


def test_listener_comes_back_and_misses_nothing(tmp_path: Path) -> None:
    with (
        served(tmp_path, PUSHSSE_STREAM_LIFETIME_S="1") as node,
        listening(node, "dee", "--user", "dee", "--count", "8") as (process, out),
    ):
        for number in range(8):
            if number == 4:
                until(lambda: out.read_text().count('"event":"ready"') > 1)
            node.run("publish", "news", str(number), "--to", "dee")
        assert process.wait(LIMIT_S) == 0
        assert _messages(out) == [str(number) for number in range(8)]


def test_answer_is_printed(node: Served) -> None:
    ended = node.run("ask", "How do I switch an event type off?", "--user", "ann")
    assert ended.returncode == 0
    assert "switch" in ended.stdout
    assert "POST /v1/preferences" in ended.stdout


def test_question_without_text_is_refused(node: Served) -> None:
    ended = node.run("ask", " ")
    assert ended.returncode == 1
    assert "$.text" in ended.stderr


def test_token_opens_what_its_scope_says(tmp_path: Path) -> None:
    with served(tmp_path, PUSHSSE_JWT_SECRET=SECRET) as node:
        made = node.run(
            "token", "--user", "ops", "--scope", "publish", PUSHSSE_JWT_SECRET=SECRET
        ).stdout.strip()
        claims = jwt.decode(made, SECRET, algorithms=["HS256"])
        assert claims["scope"] == "pushsse:publish"
        assert claims["exp"] - claims["iat"] == 3600
        assert node.run("publish", "news", "x", "--to", "all", PUSHSSE_TOKEN=made).returncode == 0
        assert "scope_missing" in node.run("prefs", PUSHSSE_TOKEN=made).stderr
        assert "token_missing" in node.run("listen").stderr


def test_kick_ends_the_streams_of_somebody(tmp_path: Path) -> None:
    with served(tmp_path, PUSHSSE_JWT_SECRET=SECRET) as node:

        def token(user: str, scope: str) -> str:
            made = pushsse(tmp_path, "token", "--user", user, "--scope", scope, PUSHSSE_JWT_SECRET=SECRET)
            return made.stdout.strip()

        theirs, admin = token("annb/ö", "stream"), token("ops", "admin")
        with listening(node, "ann", "--token", theirs) as (process, out):
            refused = node.run("kick", "annb/ö", PUSHSSE_TOKEN=theirs)
            assert refused.returncode == 1
            assert "scope_missing" in refused.stderr
            kicked = node.run("kick", "annb/ö", PUSHSSE_TOKEN=admin)
            assert kicked.returncode == 0, kicked.stderr
            assert kicked.stdout == "annb/ö: kicked; all nodes act on it within 5 s\n"
            assert process.wait(LIMIT_S) == 1
            assert '"code":"revoked"' in out.read_text()
        again = node.run("listen", PUSHSSE_TOKEN=theirs)
        assert "token_revoked" in again.stderr


def test_explain_says_who_has_set_the_switch(tmp_path: Path) -> None:
    (tmp_path / "pushsse.toml").write_text('[[types]]\nname = "law"\nmandatory = true\n')
    rows = tmp_path / "rows.csv"
    rows.write_text("user,type,enabled\nann,news,on\n")
    with served(tmp_path, PUSHSSE_JWT_SECRET=SECRET) as node:

        def run(user: str, scope: str, *arguments: str) -> str:
            made = pushsse(tmp_path, "token", "--user", user, "--scope", scope, PUSHSSE_JWT_SECRET=SECRET)
            done = node.run(*arguments, PUSHSSE_TOKEN=made.stdout.strip())
            assert done.returncode == 0, done.stderr
            return done.stdout

        def held(event: str) -> str:
            """The line about the switch, without the times."""
            lines = run("root", "admin", "explain", "ann", event).splitlines()
            [line] = [line for line in lines if line.split()[1] == "switch"]
            return line.split(None, 2)[2].partition(" at 20")[0]

        def published(event: str, kind: str = "news") -> str:
            run("ops", "publish", "publish", kind, "x", "--to", "all", "--id", event)
            return event

        run("carl", "admin", "types", "set", "news", "--default", "off")
        assert held(published("first")) == "news off, by default; by the administrator carl"
        run("ann", "preferences", "prefs", "off", "news")
        assert held(published("second")) == "news off, its own switch; by ann"
        run("root", "admin", "prefs", "import", str(rows))
        assert held(published("third")) == "news on, its own switch; imported by root"
        run("carl", "admin", "prefs", "off", "news", "--of", "ann")
        assert held(published("fourth")) == "news off, its own switch; by the administrator carl"
        assert held("second") == "news off, its own switch; by ann"
        assert held(published("law", "law")) == "law on, which is mandatory; by the settings file"
        found = json.loads(run("root", "admin", "explain", "ann", "fourth", "--json"))
        [step] = [step for step in found["timeline"] if step["what"] == "switch"]
        assert (step["how"], step["by"], step["since"] <= step["at"]) == ("admin", "carl", True)


def test_secret_audience_and_issuer_are_changed_without_anybody_logged_out(tmp_path: Path) -> None:
    strict = {"PUSHSSE_JWT_AUDIENCE": "push,push-old", "PUSHSSE_JWT_ISSUER": "https://login.example"}
    newer = SECRET[::-1]
    old = pushsse(tmp_path, "token", "--user", "ann", PUSHSSE_JWT_SECRET=SECRET, **strict).stdout.strip()
    settings = {"PUSHSSE_JWT_SECRET": newer, "PUSHSSE_JWT_SECRET_OLD": SECRET, **strict}
    with served(tmp_path, **settings) as node:
        new = node.run("token", "--user", "ann", **settings).stdout.strip()
        assert jwt.decode(new, newer, algorithms=["HS256"], audience="push")["iss"] == "https://login.example"
        elsewhere = node.run("token", "--user", "ann", PUSHSSE_JWT_SECRET=newer).stdout.strip()
        for token in (old, new):
            assert node.run("prefs", PUSHSSE_TOKEN=token).returncode == 0
        assert "token_invalid" in node.run("prefs", PUSHSSE_TOKEN=elsewhere).stderr
        both = node.run("prefs", "--user", "bob", PUSHSSE_TOKEN=token)
        assert (both.returncode, "--user isn't looked at" in both.stderr) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "secret", "word"),
    [
        (["--user", "a b"], SECRET, "white space"),
        (["--user", "ann", "--scope", "king"], SECRET, "king"),
        (["--user", "ann", "--expires", "late"], SECRET, "late"),
        (["--user", "ann", "--expires", "25h"], SECRET, "PUSHSSE_TOKEN_MAX_S"),
        (["--user", "ann"], "short", "32"),
        (["--user", "ann"], "", "PUSHSSE_JWT_SECRET"),
    ],
)
def test_token_that_would_not_work_is_not_made(
    tmp_path: Path, arguments: list[str], secret: str, word: str
) -> None:
    ended = pushsse(tmp_path, "token", *arguments, PUSHSSE_JWT_SECRET=secret)
    assert ended.returncode in (1, 2)
    assert word in ended.stderr
    assert not ended.stdout


def test_migrate_says_what_it_applied(tmp_path: Path) -> None:
    first, second = pushsse(tmp_path, "migrate"), pushsse(tmp_path, "migrate")
    assert first.stdout.startswith("applied 0001_")
    assert second.stdout == "nothing to do: the database is up to date\n"


def test_doctor_is_content_with_the_embedded_parts(tmp_path: Path) -> None:
    ended = pushsse(tmp_path, "doctor")
    assert ended.returncode == 0
    assert [line.split()[1] for line in ended.stdout.splitlines()] == [
        "identity", "settings", "database", "redis", "kafka", "answerer", "addresses", "files",
    ]  # fmt: skip


def test_doctor_tries_the_key_server(tmp_path: Path) -> None:
    strict = {"PUSHSSE_JWT_AUDIENCE": "push", "PUSHSSE_JWT_ISSUER": "https://login.example"}
    answers = [(200, key_set(jwk("ES256", PRIVATE["ES256"]))), (200, b"<html>"), (404, b"")]
    for (status, body), verdict, word in zip(
        answers, ("ok", "fault", "fault"), ("1 keys", "JSON", "404"), strict=True
    ):
        with answering_beside(status, body) as url:
            ended = pushsse(tmp_path, "doctor", PUSHSSE_JWKS_URL=url, **strict)
        [line] = [line for line in ended.stdout.splitlines() if " identity " in line]
        assert line.startswith(verdict)
        assert word in line
        assert ended.returncode == (verdict == "fault")
    ended = pushsse(tmp_path, "doctor", PUSHSSE_JWKS_URL="http://127.0.0.1:1/keys", **strict)
    assert "fault" in ended.stdout
    assert "127.0.0.1:1" in ended.stdout


def test_doctor_asks_the_server_of_sessions_as_a_stranger(tmp_path: Path) -> None:
    for status, verdict in ((401, "ok"), (200, "fault"), (302, "fault"), (500, "fault")):
        with answering_beside(status, b'{"user": "ann", "expires_in_s": 60}') as url:
            ended = pushsse(tmp_path, "doctor", PUSHSSE_AUTH_URL=url)
        [line] = [line for line in ended.stdout.splitlines() if " identity " in line]
        assert line.startswith(verdict)
        assert str(status) in line
        assert ended.returncode == (verdict == "fault")


def test_doctor_finds_what_is_away_and_hides_passwords(tmp_path: Path) -> None:
    ended = pushsse(
        tmp_path,
        "doctor",
        PUSHSSE_DATABASE_URL="postgres://pushsse:hidden@127.0.0.1:1/pushsse",
        PUSHSSE_REDIS_URL="redis://:hidden@127.0.0.1:1",
        PUSHSSE_KAFKA_BOOTSTRAP="127.0.0.1:1",
        PUSHSSE_JWT_SECRET="short",
    )
    assert ended.returncode == 1
    faults = [line.split()[1] for line in ended.stdout.splitlines() if line.startswith("fault")]
    assert faults == ["database", "redis", "kafka", "identity"]
    assert "hidden" not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


def test_staff_list_read_answer_and_release_what_waits(node: Served) -> None:
    staff, ann = ("--user", "sam"), ("--user", "annette")
    assert node.run("desk", *staff).stderr == "nothing waits\n"
    asked = node.run("ask", *ann, "--conversation", "order-1", "How", "do", "I", "get", "a", "refund?")
    assert asked.returncode == 0, asked.stderr
    httpx.post(f"{node.url}/v1/conversations/order-1/handover?user=annette", json={"reason": "please"})
    waits = node.run("ask", *ann, "--conversation", "order-1", "Is anybody \x1b[2J there?")
    assert waits.returncode == 1, waits.stdout
    waits = node.run("ask", *ann, "--conversation", "order-1", "Is anybody there?")
    assert (waits.returncode, waits.stdout) == (0, "")
    assert waits.stderr.startswith("people answer this: ")
    question = waits.stderr.split()[3].rstrip(",")
    listed = node.run("desk", *staff).stdout
    assert listed == "order-1  1 waiting  annette: How do I get a refund?  (please)\n"
    as_json = json.loads(node.run("desk", "list", "--json", *staff).stdout)
    assert (as_json["id"], as_json["handed_over"]["waiting"]) == ("order-1", 1)
    read = node.run("desk", "read", *staff, "order-1").stdout
    assert f"> [{question}] Is anybody there?" in read
    assert "> How do I get a refund?" in read
    lines = node.run("desk", "read", "--json", *staff, "order-1").stdout.splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["answered", "handed_over"]
    done = node.run("desk", "answer", *staff, question, "I", "am.", "--name", "Sam")
    assert (done.returncode, done.stdout) == (0, f"{question}: answered as Sam\n")
    again = node.run("desk", "answer", *staff, question, "Me", "too.")
    assert (again.returncode, again.stderr.startswith("pushsse: already_ended")) == (1, True)
    assert node.run("desk", "write", *staff, "order-1", "Bye.").stdout.endswith(": sent as sam\n")
    assert "  Sam (staff): I am.\n" in node.run("desk", "read", *staff, "order-1").stdout
    assert node.run("desk", "release", *staff, "order-1").stdout == "order-1: released\n"
    assert node.run("desk", "release", *staff, "order-1").returncode == 1


def test_what_commands_did_is_also_told_as_json(node: Served, tmp_path: Path) -> None:
    first, second = (json.loads(pushsse(tmp_path, "migrate", "--json").stdout)["applied"] for _ in range(2))
    assert (first[0][:5], second) == ("0001_", [])
    kicked = json.loads(node.run("kick", "--json", "somebody").stdout)
    assert kicked["user"] == "somebody"
    asked = node.run("ask", "--json", "--user", "jo", "How", "do", "I", "get", "a", "refund?")
    question = json.loads(asked.stdout)
    assert (question["status"], question["text"]) == ("answered", "How do I get a refund?")
    assert question["answer"]["text"]
    secret = "a secret of thirty-two bytes and more"
    made = json.loads(pushsse(tmp_path, "token", "--json", "--user", "jo", PUSHSSE_JWT_SECRET=secret).stdout)
    assert jwt.decode(made["token"], secret, ["HS256"]) == made["claims"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell: str, tmp_path: Path) -> None:
    script = pushsse(tmp_path, "completion", shell)
    assert (script.returncode, f"_PUSHSSE_COMPLETE={shell}_complete" in script.stdout) == (0, True)
    asked = {"COMP_WORDS": "pushsse listen --si", "COMP_CWORD": "2" if shell != "fish" else "--si"}
    found = pushsse(tmp_path, _PUSHSSE_COMPLETE=f"{shell}_complete", **asked).stdout
    assert "--since" in found
    assert "--types" not in found


def test_a_shell_without_completion_is_named(tmp_path: Path) -> None:
    ended = pushsse(tmp_path, "completion", SHELL="/bin/tcsh")
    assert (ended.returncode, "'tcsh'" in ended.stderr) == (1, True)


def test_the_docs_have_every_command() -> None:
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    assert {name for name in COMMANDS if f"| `{name}" not in page} == set()
