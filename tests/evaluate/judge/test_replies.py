"""The cache of a judge's replies."""

import json
import random
import threading

import pytest

from distilllens.evaluate.judge.replies import Reply, ReplyCache, key_of


def reply(text="SCORES: 7 4", cut=False):
    return Reply(text, cut, 100, 10)


def filled(path, count=3):
    cache = ReplyCache(path)
    for number in range(count):
        cache.add(f"k{number}", reply(f"é\n{number}"), model="m")
    cache.close()
    return {f"k{number}": reply(f"é\n{number}") for number in range(count)}


def read(path, keys):
    cache = ReplyCache(path)
    return {key: cache.get(key) for key in keys if cache.get(key)}


def test_replies_come_back(tmp_path):
    """Text, token counts and the mark of a cut; nothing for another key; folders are made."""
    path = tmp_path / "a" / "judge.jsonl"
    kept = filled(path)
    assert read(path, [*kept, "other"]) == kept
    assert len(ReplyCache(path)) == 3
    assert all(json.loads(line)["model"] == "m" for line in path.read_text().splitlines())


def test_reading_makes_no_file(tmp_path):
    """A cache that nothing was added to leaves no trace."""
    ReplyCache(tmp_path / "judge.jsonl").close()
    assert list(tmp_path.iterdir()) == []


def test_a_line_is_on_the_disk_when_add_returns(tmp_path):
    """Another reader sees it before the file is closed."""
    path = tmp_path / "judge.jsonl"
    cache = ReplyCache(path)
    cache.add("k", reply())
    assert read(path, ["k"]) == {"k": reply()}
    cache.close()


def test_torn_anywhere(tmp_path):
    """Cut at any byte, whole lines are kept, and what is added next can be read."""
    path = tmp_path / "judge.jsonl"
    kept = filled(path)
    whole = path.read_bytes()
    ends = [n for n, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        expected = dict(list(kept.items())[: sum(size >= end for end in ends)])
        assert read(path, kept) == expected, size
        cache = ReplyCache(path)
        cache.add("new", reply())
        cache.close()
        assert read(path, [*kept, "new"]) == expected | {"new": reply()}, size


def test_the_order_of_lines_does_not_matter(tmp_path):
    """Not even if two lines have the same key."""
    path = tmp_path / "judge.jsonl"
    kept = filled(path, count=6)
    cache = ReplyCache(path)
    cache.add("k0", reply("a"))
    cache.add("k1", reply("z"))
    cache.close()
    kept["k0"], kept["k1"] = reply("a"), min(kept["k1"], reply("z"), key=lambda r: r.text)
    lines = path.read_text().splitlines()
    for seed in range(5):
        random.Random(seed).shuffle(lines)
        path.write_text("\n".join(lines))
        assert read(path, kept) == kept


def test_threads_share_a_cache(tmp_path):
    """No line of eight writers is lost or mixed with another."""
    path = tmp_path / "judge.jsonl"
    cache = ReplyCache(path)

    def write(writer):
        for number in range(50):
            cache.add(f"{writer}-{number}", reply("x" * 500))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.close()
    assert len(ReplyCache(path)) == 400 == len(path.read_text().splitlines())


@pytest.mark.parametrize(
    ("text", "line"),
    [("# A page\n", 1), ('{"instruction": "x"}\n', 1), ("\n\nx", 3), ('{\n "key": "x"\n}', 2)],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, line):
    """And is left as it was."""
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"page\.md:{line}: no line of a judge's cache"):
        ReplyCache(path)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": 5}, "the entry 'text' is 5; it must be text"),
        ({"cut": "no"}, "the entry 'cut' is \"no\"; it must be true or false"),
        ({"prompt_tokens": None}, "the entry 'prompt_tokens' is null; it must be a whole number"),
        ({"key": 7}, "the content is 7; it must be text"),
    ],
)
def test_a_damaged_reply_is_named(tmp_path, changes, message):
    """By file and line, with what to do."""
    path = tmp_path / "judge.jsonl"
    filled(path)
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | changes)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError) as refused:
        ReplyCache(path)
    assert (
        str(refused.value) == f"{path}:2: {message}; delete the line, and the judge is asked again"
    )


def test_a_whole_line_of_something_else_is_named_anywhere(tmp_path):
    """Not only at the beginning: it is not dropped like a torn one."""
    path = tmp_path / "judge.jsonl"
    filled(path)
    path.write_text(path.read_text() + '{"instruction": "x"}\n')
    with pytest.raises(ValueError, match=r"judge\.jsonl:4: no line of a judge's cache"):
        ReplyCache(path)


def test_a_folder_is_refused(tmp_path):
    """The message says what would be right."""
    with pytest.raises(ValueError, match=r"is no file; name one, such as judge\.jsonl"):
        ReplyCache(tmp_path)


def test_text_that_no_encoding_holds_comes_back(tmp_path):
    """Half a surrogate pair, as a broken server may send."""
    path = tmp_path / "judge.jsonl"
    cache = ReplyCache(path)
    cache.add("k", reply("a\ud800"))
    cache.close()
    assert read(path, ["k"]) == {"k": reply("a\ud800")}


def test_a_key_is_of_everything():
    """The order of fields does not matter, every value does."""
    question = {"model": "m", "messages": [{"role": "user", "content": "é"}], "seed": 0}
    assert key_of(question) == key_of(dict(reversed(question.items())))
    others = [question | {"model": "n"}, question | {"seed": 1}, question | {"messages": []}]
    assert len({key_of(q) for q in [question, *others]}) == 4


def test_a_line_without_a_key_is_not_ours(tmp_path):
    """All the fields of a reply but its key: another file, which is left alone."""
    path = tmp_path / "judge.jsonl"
    line = {"text": "SCORES: 1 2", "cut": False, "prompt_tokens": 1, "completion_tokens": 1}
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"judge.jsonl:1: no line of a judge's cache"):
        ReplyCache(path)
