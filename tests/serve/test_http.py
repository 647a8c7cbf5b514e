"""`hfadapt serve`: real adapters behind a real server on this machine."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvicorn
from tiny import NO_CHECKS, chats, command, labelled, pairs, questions, recipe_fields, start, write_recipe, write_rows
from tiny_images import marked

from hfadapt import load_adapted, load_bank
from hfadapt.serve.batching import Limits
from hfadapt.serve.http import Server, listening, make_app

SECONDS = 60
KINDS = {
    "classes": ("text-classification", "encoder", labelled, {}),
    "words": ("causal-lm", "lm", pairs, {}),
    "chat": ("causal-lm", "lm", chats, {}),
    "search": ("embedding", "encoder", questions, {}),
}


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    """Makes runs of two domains, each once, trained far enough to differ."""
    made = {}

    def run(kind):
        if kind not in made:
            task, model, rows, more = KINDS[kind]
            folder = tmp_path_factory.mktemp(kind)
            for seed, domain in enumerate(("one", "two")):
                write_rows(folder / f"{domain}.jsonl", rows(80, seed=seed))
            domains = {domain: {"source": f"{domain}.jsonl"} for domain in ("one", "two")}
            train = {"max_steps": 12, "learning_rate": 2e-2, "batch_rows": 8}
            fields = recipe_fields(
                models / model, task, domains, train=train, dtype="float32", evaluate=NO_CHECKS, **more
            )
            done = command("train", write_recipe(folder / "tiny.yaml", fields).name, folder=folder)
            assert done.code == 0, done.err
            made[kind] = folder / "runs/tiny"
        return made[kind]

    return run


@contextlib.contextmanager
def serving(run, **limits):
    """A server in a thread of its own, and its port."""
    server = Server(load_bank(run), Limits(**limits))
    with listening("127.0.0.1", 0) as at:
        program = uvicorn.Server(uvicorn.Config(make_app(server), log_level="warning"))
        at.listen()
        thread = threading.Thread(target=program.run, kwargs={"sockets": [at]})
        thread.start()
        try:
            yield server, at.getsockname()[1]
        finally:
            program.should_exit = True
            thread.join(SECONDS)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def classes(trained):
    with serving(trained("classes"), body_bytes=20_000, request_rows=8, text_characters=2000) as made:
        yield made


@pytest.fixture(scope="module")
def words(trained):
    with serving(trained("words"), new_tokens=32) as made:
        yield made


def ask(port, path, body=None, **headers):
    """Status and text of a response; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    if body is not None and not isinstance(body, bytes):
        body, headers = json.dumps(body), {"Content-Type": "application/json", **headers}
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def got(port, path, body=None):
    status, text = ask(port, path, body)
    assert status == 200, text
    return json.loads(text)


def fault(port, path, body, **headers):
    """Status and message of an error, which all have OpenAI's shape."""
    status, text = ask(port, path, body, **headers)
    error = json.loads(text)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return status, error["message"]


def at_once(*calls):
    """What the calls return when all are made at the same time."""
    gate = threading.Barrier(len(calls))

    def one(call):
        gate.wait(SECONDS)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def said(answers):
    return [(each["label"], pytest.approx(each["probability"], abs=1e-5)) for each in answers]


# --- answers ---------------------------------------------------------------------------------------------------------


def test_mixed_requests_at_once_are_answered_as_predict_does(classes, trained):
    server, port = classes
    texts = [row["text"] for row in labelled(24, seed=9)]
    alone = {domain: load_adapted(trained("classes"), domain).predict(texts) for domain in ("one", "two")}
    assert [each.probability for each in alone["one"]] != [each.probability for each in alone["two"]]
    before = server.batcher.counts.batches
    calls = [
        lambda i=i, domain=domain: got(port, "/predict", {"domain": domain, "texts": texts[i : i + 2]})
        for i in range(0, 24, 2)
        for domain in ("one", "two")
    ]
    answers = at_once(*calls)
    assert server.batcher.counts.batches - before < len(calls)
    for number, answer in enumerate(answers):
        at, domain = 2 * (number // 2), ("one", "two")[number % 2]
        assert answer["answers"] == [
            {**each.model_dump(), "parts": [], "probability": pytest.approx(each.probability, abs=1e-5)}
            for each in alone[domain][at : at + 2]
        ]
    mixed = got(port, "/predict", {"domain": ["one", "two"], "inputs": [texts[0], texts[0]]})["answers"]
    assert said(mixed) == [(alone[d][0].label, alone[d][0].probability) for d in ("one", "two")]


def test_rows_fill_the_recipes_template_as_predict_of_a_file_does(classes, trained, tmp_path):
    _, port = classes
    rows = [{"text": "a lovely film", "id": "7"}, {"text": "a dull story"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    done = command("predict", trained("classes") / "one/this-machine", "--file", path, "--json")
    answers = got(port, "/predict", {"domain": "one", "inputs": rows})["answers"]
    assert said(answers) == [(each["label"], each["probability"]) for each in json.loads(done.out)]
    status, message = fault(port, "/predict", {"domain": "one", "inputs": [{"colour": "x"}]})
    assert status == 400
    assert "input 0 has no text, only colour" in message


def test_one_bad_request_leaves_those_that_share_its_batch(classes):
    _, port = classes
    good = {"domain": "one", "inputs": ["a lovely film"]}
    bad = {"domain": "one", "inputs": [{"nothing": 1}]}
    found = at_once(*(lambda body=body: ask(port, "/predict", body) for body in (good, bad) * 6))
    assert [status for status, _ in found] == [200, 400] * 6
    assert len({text for status, text in found if status == 200}) == 1


def test_the_first_text_of_each_search_is_its_query(trained):
    run = trained("search")
    texts = [row["anchor"] for row in questions(40, seed=5)]
    searches = [texts[:3], texts[3:5], texts]
    bank = load_bank(run)
    wanted = [bank.predict(each, "one") for each in searches]
    assert [each.number is None for each in wanted[2]] == [True] + [False] * 39
    with serving(run) as (_, port):
        calls = [lambda each=each: got(port, "/predict", {"domain": "one", "texts": each}) for each in searches]
        for answer, each in zip(at_once(*calls), wanted, strict=True):
            numbers = [one["number"] for one in answer["answers"]]
            assert numbers[0] is None
            assert numbers[1:] == pytest.approx([one.number for one in each[1:]], abs=1e-5)


def test_pictures_come_in_base64_or_as_the_body(picture_run, tmp_path):
    marked("bar", 700).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (wanted,) = load_adapted(picture_run, "one").predict(data)
    text = base64.b64encode(data).decode()
    with serving(picture_run) as (_, port):
        answers = got(port, "/predict", {"domain": "one", "inputs": [text, f"data:image/png;base64,{text}"]})["answers"]
        assert said(answers) == [(wanted.label, wanted.probability)] * 2
        status, body = ask(port, "/predict/file?domain=one", data, **{"Content-Type": "image/png"})
        assert status == 200
        assert said(json.loads(body)["answers"]) == [(wanted.label, wanted.probability)]
        # The name of a file of this machine is none of the client's business.
        status, message = fault(port, "/predict", {"domain": "one", "inputs": [str(tmp_path / "a.png")]})
        assert status == 400
        assert "an input is no file" in message
        status, message = fault(port, "/predict/file?domain=one", b"<!doctype html>")
        assert status == 400
        assert "a web page and no image" in message
        status, message = fault(port, "/predict/file?domain=one", b"--x\r\ncontent-disposition: form-data; name=file")
        assert status == 400
        assert "send the file alone" in message
        # What is sent in another way is told what works for files.
        for body in (data, {"domain": "one"}):
            status, message = fault(port, "/predict", body)
            assert status == 400
            assert '{"inputs": ["BASE64"]}' in message
            assert "/predict/file" in message
        # Of several the broken one is named.
        half = base64.b64encode(data[: len(data) // 2]).decode()
        status, message = fault(port, "/predict", {"domain": "one", "inputs": [text, half, text]})
        assert status == 400
        assert "inputs.1: this image cannot be read" in message
        assert "inputs.0" not in message
        status, message = fault(port, "/v1/chat/completions", {"model": "one", "messages": [{"role": "user"}]})
        assert status == 404
        assert "do not write texts" in message


# --- OpenAI's routes -------------------------------------------------------------------------------------------------


def turn(text):
    return [{"role": "user", "content": text}]


def test_a_model_is_a_domain(words):
    _, port = words
    assert [each["id"] for each in got(port, "/v1/models")["data"]] == ["one", "two"]
    assert got(port, "/v1/models/two") == got(port, "/v1/models")["data"][1]
    status, message = fault(port, "/v1/chat/completions", {"model": "oen", "messages": turn("x")})
    assert status == 404
    assert "one, two" in message


def test_what_is_written_together_is_what_is_written_alone(words, trained):
    _, port = words
    bank = load_bank(trained("words"))
    texts = [f"{row['text']} :" for row in labelled(8, seed=3)]
    calls, wanted = [], []
    for number, text in enumerate(texts):
        domain, tokens = ("one", "two")[number % 2], 1 + number
        adapted = bank.use(domain)
        ids = adapted.generate([adapted.tokenizer(text)["input_ids"]], tokens)[0]
        wanted.append((adapted.tokenizer.decode(ids, skip_special_tokens=True), len(ids), tokens))
        body = {"model": domain, "prompt": text, "max_tokens": tokens}
        calls.append(lambda body=body: got(port, "/v1/completions", body))
    for answer, (text, written, tokens) in zip(at_once(*calls), wanted, strict=True):
        (choice,) = answer["choices"]
        assert choice["text"] == text
        assert choice["finish_reason"] == ("length" if written == tokens else "stop")
        usage = answer["usage"]
        assert usage["completion_tokens"] == min(tokens, written + 1)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_turn_is_asked_as_predict_asks_it(words, trained):
    _, port = words
    text = "lovely bright day :"
    answer = got(port, "/v1/chat/completions", {"model": "one", "messages": turn(text)})["choices"][0]["message"]
    adapted = load_adapted(trained("words"), "one")
    ids = adapted.generate([adapted.tokenizer(text)["input_ids"]], 128)[0]
    assert answer == {"role": "assistant", "content": adapted.tokenizer.decode(ids, skip_special_tokens=True).strip()}
    assert answer["content"]
    two = [*turn(text), {"role": "assistant", "content": "good"}, *turn("and?")]
    status, message = fault(port, "/v1/chat/completions", {"model": "one", "messages": two})
    assert status == 400
    assert "trained on prompts and answers" in message
    # Its label is chosen, as `hfadapt predict` does it.
    (chosen,) = got(port, "/predict", {"domain": "one", "texts": [text]})["answers"]
    assert chosen["label"] == adapted.predict(text)[0].label


def test_chats_go_through_the_models_template(trained):
    with serving(trained("chat")) as (server, port):
        messages = [
            {"role": "system", "content": "lovely"},
            *turn("bright day"),
            {"role": "assistant", "content": "warm"},
            {"role": "user", "content": [{"type": "text", "text": "cold day"}]},
        ]
        answer = got(port, "/v1/chat/completions", {"model": "two", "messages": messages, "max_tokens": 6})
        adapted = server.bank.use("two")
        text = "<|system|>lovely<|end|>\n<|user|>bright day<|end|>\n<|assistant|>warm<|end|>\n"
        ids = adapted.tokenizer(f"{text}<|user|>cold day<|end|>\n<|assistant|>", add_special_tokens=False)["input_ids"]
        assert answer["usage"]["prompt_tokens"] == len(ids)
        written = adapted.generate([ids], 6)[0]
        content = adapted.tokenizer.decode(written, skip_special_tokens=True).strip()
        assert answer["choices"][0]["message"]["content"] == content
        status, message = fault(port, "/v1/chat/completions", {"model": "two", "messages": [{"role": "king"}]})
        assert status == 400
        assert "unknown role 'king'" in message


def events(port, path, body):
    status, text = ask(port, path, {**body, "stream": True})
    assert status == 200, text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_stream_is_the_answer_in_pieces(words):
    _, port = words
    body = {"model": "two", "messages": turn("dull day :"), "max_tokens": 12, "temperature": 1.5, "seed": 4}
    whole = got(port, "/v1/chat/completions", body)
    pieces = events(port, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    assert {each["object"] for each in pieces} == {"chat.completion.chunk"}
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    assert pieces.pop()["usage"] == whole["usage"]
    assert pieces[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    said = [each["choices"][0]["delta"].get("content", "") for each in pieces]
    assert "".join(said) == whole["choices"][0]["message"]["content"]
    assert sum(map(bool, said)) > 2
    plain = {"model": "two", "prompt": "dull day :", "max_tokens": 12, "temperature": 1.5, "seed": 4}
    text = "".join(each["choices"][0]["text"] for each in events(port, "/v1/completions", plain))
    assert text == got(port, "/v1/completions", plain)["choices"][0]["text"]


def test_a_text_ends_before_what_stops_it_also_in_a_stream(words):
    _, port = words
    body = {"model": "one", "prompt": "lovely :", "max_tokens": 24, "temperature": 1.8, "seed": 11}
    whole = got(port, "/v1/completions", body)["choices"][0]["text"]
    stop = whole[len(whole) // 2 :][:4]
    cut = got(port, "/v1/completions", {**body, "stop": ["\x00", stop]})
    assert cut["choices"][0] == {
        "index": 0,
        "text": whole[: whole.find(stop)],
        "logprobs": None,
        "finish_reason": "stop",
    }
    pieces = events(port, "/v1/completions", {**body, "stop": stop})
    assert "".join(each["choices"][0]["text"] for each in pieces) == whole[: whole.find(stop)]


def test_a_draw_depends_on_its_own_seed_alone(words):
    _, port = words

    def body(seed, temperature=1.3, **more):
        return {"model": "one", "prompt": "day :", "max_tokens": 10, "seed": seed, "temperature": temperature, **more}

    def text(each):
        return got(port, "/v1/completions", each)["choices"][0]["text"]

    alone = [text(body(seed)) for seed in range(6)]
    assert len(set(alone)) > 3
    assert at_once(*(lambda seed=seed: text(body(seed)) for seed in range(6))) == alone
    greedy = text(body(0, temperature=0))
    assert text(body(3, top_p=1e-6)) == greedy
    assert greedy not in alone


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"n": 2}, "`n` is not done"),
        ({"tools": [{"type": "function"}]}, "`tools` is not done"),
        ({"max_tokens": 33}, "--max-tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "none of them empty"),
        ({"temperature": 3}, "less than or equal to 2"),
        ({"messages": []}, "messages"),
        ({"messages": turn("day " * 300)}, "longer than what the model reads"),
    ],
)
def test_what_cannot_be_done_is_refused(words, more, named):
    _, port = words
    for stream in (False, True):
        body = {"model": "one", "messages": turn("day"), "user": "me", "n": 1, "stream": stream, **more}
        status, message = fault(port, "/v1/chat/completions", body)
        assert status == 400
        assert named in message


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "named"),
    [
        (413, {"domain": "one", "inputs": ["x"] * 9}, "too many inputs"),
        (413, {"domain": "one", "inputs": ["x" * 2001]}, "2,001 characters"),
        (413, {"domain": "one", "inputs": ["x" * 20_000]}, "allowed: 20,000 bytes"),
        (404, {"domain": "onne", "inputs": ["x"]}, "did you mean 'one'?"),
        (400, {"inputs": ["x"]}, "one, two"),
        (400, {"domain": ["one", "two"], "inputs": ["x"]}, "1 input and 2 domains"),
        (400, {"domain": "one", "inputs": []}, "inputs"),
        (400, {"domain": "one", "texts": ["x"], "more": 1}, "more"),
        (400, {"domain": "one", "texts": ["x", 5]}, "texts.1: a text or an object is expected"),
        (400, ["x"], "a list"),
        (400, ["x"], '{"inputs": ["a text"]}'),
        (400, {"domain": "one", "inputs": "x"}, '{"inputs": ["a text"]}'),
        (400, b"{", "broken JSON"),
        (400, b"text=x", "Content-Type: application/json"),
    ],
)
def test_limits_and_wrong_requests(classes, status, body, named):
    _, port = classes
    headers = {} if not isinstance(body, bytes) or body != b"{" else {"Content-Type": "application/json"}
    found, message = fault(port, "/predict", body, **headers)
    assert (found, named in message) == (status, True), message


def test_a_body_without_a_length_is_not_read_to_its_end(classes):
    _, port = classes
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as raw:
        raw.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        raw.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        raw.sendall(chunk * 2)
        assert raw.recv(64).startswith(b"HTTP/1.1 413")


def test_a_full_queue_is_429_and_the_server_goes_on(trained):
    with serving(trained("classes"), queue_rows=4) as (_, port):
        body = {"domain": "one", "inputs": ["a lovely film"] * 2}
        found = at_once(*(lambda: ask(port, "/predict", body) for _ in range(24)))
        assert {status for status, _ in found} == {200, 429}
        refused = next(json.loads(text)["error"] for status, text in found if status == 429)
        assert refused["type"] == "rate_limit_error"
        assert "too many requests are waiting" in refused["message"]
        assert ask(port, "/predict", body)[0] == 200
        assert got(port, "/health")["waiting_rows"] == 0


def test_paths_health_and_metrics(classes):
    server, port = classes
    assert got(port, "/health")["domains"] == ["one", "two"]
    status, message = fault(port, "/v2/predict", b"")
    assert status == 404
    assert "/predict, /predict/file" in message
    assert fault(port, "/predict", None) == (405, "/predict is asked with POST, not GET")
    text = ask(port, "/metrics")[1]
    count = int(re.search(r'hfadapt_requests_total\{path="/health",status="200"\} (\d+)', text)[1])
    got(port, "/health")
    assert f'{{path="/health",status="200"}} {count + 1}' in ask(port, "/metrics")[1]
    assert f"hfadapt_batches_total {server.batcher.counts.batches}" in text


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_server_that_is_stopped_answers_what_was_asked(trained):
    run = trained("words")
    program = start("serve", run, "--port", "0", folder=run)
    try:
        said = ""
        while "http://" not in said:
            line = program.stderr.readline()
            assert line, said
            said += line
        port = int(re.search(r"http://127.0.0.1:(\d+)", said)[1])
        assert "2 domains on one base" in said
        body = {"model": "one", "prompt": "day :", "max_tokens": 200, "temperature": 2, "seed": 0}
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, port, "/v1/completions", {**body, "seed": seed}) for seed in range(4)]
            while not re.search(r"batches_total [1-9]", ask(port, "/metrics")[1]):
                pass
            program.send_signal(signal.SIGTERM)
            assert [each.result(SECONDS)[0] for each in asked] == [200] * 4
        assert program.wait(SECONDS) == 0
        assert "stopped after" in program.stderr.read()
        with pytest.raises(ConnectionRefusedError):
            ask(port, "/health")
    finally:
        program.kill()
        program.communicate()


def test_wrong_commands_are_plain(trained, tmp_path, monkeypatch):
    run = trained("classes")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = command("serve", run, "--port", other.getsockname()[1])
    assert done.code == 2
    assert "cannot listen there" in done.err
    assert "--port, 0 for any that is free" in done.err
    done = command("serve", run, "--port", 0, "-d", "tow")
    assert done.code == 2
    assert "one, two" in done.err
    done = command("serve", tmp_path, "--port", 0)
    assert done.code == 2
    assert "no trained adapter here" in done.err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "hfadapt.serve.http", None)
        done = command("serve", run, "--port", 0)
    assert done.code == 2
    assert "pip install 'hfadapt[serve]'" in done.err
