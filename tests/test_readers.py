"""Whatever bytes a file holds: its rows are read or named, none is lost, and nothing but an InputError comes of it.

Valid files are spoiled, in their bytes and in their structure. Every row carries a mark that occurs nowhere else; what a reader
gives is compared with the marks that are still whole in the file, and with an independent reading of it.

PREFINETUNE_EXAMPLES=3000 pytest tests/test_readers.py throws thousands of files at each reader.
"""

import csv
import gzip
import io
import json
import os
import re
import signal
import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefinetune.errors import InputError
from prefinetune.readers import Table, collector, kinds, read_file

many = settings(
    max_examples=int(os.environ.get("PREFINETUNE_EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class TooLong(BaseException):
    """Not an Exception, so that nobody takes it for a fault of the file."""


@contextmanager
def time_limit(seconds: int):
    def stop(*_):
        raise TooLong(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read(name: str, content: bytes) -> Table | str:
    """The table, read twice (from the file and from the cache), or the message of an InputError."""
    with tempfile.TemporaryDirectory() as folder, time_limit(60):
        path = Path(folder) / name
        path.write_bytes(content)
        message = ""
        try:
            table = read_file(path, Path(folder) / "cache")
        except InputError as error:
            message = str(error)
        if message:
            assert str(path) in message
            assert list((Path(folder) / "cache" / "tables").iterdir()) == [], "what was being written is gone"
            return message
        again = read_file(path, Path(folder) / "cache")
        rows = list(table.rows)
        assert again.faults == table.faults
        assert repr(list(again.rows)) == repr(rows)
        assert len(rows) + len(table.faults) == len(table)
        numbers = list(range(len(table))) if table.numbers is None else table.numbers.tolist()
        assert sorted([*numbers, *table.faults]) == list(range(len(table))), "every number is a row or a fault"
        object.__setattr__(table, "columns", table.rows.column_names)
        object.__setattr__(table, "rows", rows)  # the folder goes
        return table


def mark(row: int) -> str:
    return f"<{row}>"


MARK = re.compile(r"<(\d+)>")


# ---- tables


@st.composite
def cells(draw, row: int) -> list[str]:
    text = draw(st.text(st.sampled_from('ab"\n\r,;\té\u2028 '), max_size=12))
    return [mark(row) + text, draw(st.sampled_from(["x", "NA", "", "1.0", "a\nb"]))]


@st.composite
def tables(draw, delimiter: str = ",") -> bytes:
    rows = [draw(cells(row)) for row in range(draw(st.integers(0, 8)))]
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=draw(st.sampled_from(["\n", "\r\n"])))
    writer.writerow(["text", "label"])
    for row in rows:
        writer.writerow(row)
        if draw(st.integers(0, 9)) == 0:
            out.write(draw(st.sampled_from(["\n", "\r\n", "  \n", "ragged\n", ",,,\n", '"\n', "\0\n", "a\rb\n"])))
    return (b"\xef\xbb\xbf" if draw(st.booleans()) else b"") + out.getvalue().encode()


@st.composite
def spoiled(draw, valid) -> bytes:
    """Some bytes taken out, put in, doubled or changed."""
    content = bytearray(draw(valid))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        size = draw(st.integers(1, 6))
        kind = draw(st.sampled_from(["delete", "insert", "replace", "cut", "double"]))
        new = draw(
            st.sampled_from([b'"', b"\n", b"\r", b",", b"\t", b"\0", b"\xff", b"{", b"]", b"\\", b":", b"\xef\xbb\xbf", b"5"])
        )
        if kind == "delete":
            del content[at : at + size]
        elif kind == "insert":
            content[at:at] = new
        elif kind == "replace":
            content[at : at + 1] = new
        elif kind == "cut":
            del content[at:]
        else:
            content[at:at] = content[at : at + size]
    return bytes(content)


def check_lines(content: bytes, table: Table) -> None:
    """No line is lost: its mark is in a row, or it lies in the lines of a fault, which reach to the next row's or fault's."""
    lines = re.split(rb"\r\n|\n|\r", content)
    in_rows = [int(number) for part in (table.columns, *table.rows) for number in MARK.findall(repr(part))]
    in_lines = [(int(number), at) for at, line in enumerate(lines, 1) for number in MARK.findall(line.decode("utf-8", "replace"))]
    faulty = {fault.line for fault in table.faults.values()}
    lost = [(number, line) for number, line in in_lines if number not in in_rows]
    for number, line in lost:
        first = max((start for start in faulty if start <= line), default=0)
        assert first > 0, f"mark {number} of line {line} is neither in a row nor in a fault"
        between = [other for other, at in in_lines if first < at < line and other in in_rows]
        assert not between, f"mark {number} of line {line} is lost: row {between} was read after the fault in line {first}"


def independent(content: bytes, delimiter: str) -> tuple[list[list[str]], int] | None:
    """(cells of well-formed records, number of records) of a table whose quotes are right, read character by character."""
    text = content.decode("utf-8-sig")
    records: list[list[str]] = []
    record, cell, at, quoted, started = [], "", 0, False, False
    while at < len(text):
        char = text[at]
        if quoted:
            if char == '"' and text[at + 1 : at + 2] == '"':
                cell, at = cell + '"', at + 1
            elif char == '"':
                quoted = False
                if text[at + 1 : at + 2] not in (delimiter, "\n", "\r", ""):
                    return None
            else:
                cell += char
        elif char == '"' and not cell and not started:
            quoted = started = True
        elif char == delimiter:
            record, cell, started = [*record, cell], "", False
        elif char in "\r\n":
            at += char == "\r" and text[at + 1 : at + 2] == "\n"
            records.append([*record, cell] if record or cell or started else [])
            record, cell, started = [], "", False
        else:
            cell, started = cell + char, True
        at += 1
    if quoted:
        return None
    if record or cell or started:
        records.append([*record, cell])
    return records, len(records)


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ","), ("a.csv.zst", ",")])
@many
@given(data=st.data())
def test_no_row_of_a_table_is_lost(name, delimiter, data):
    content = data.draw(spoiled(tables(delimiter)))
    table = read(name, compressed(name, content))
    try:
        known = independent(content, delimiter)
    except UnicodeDecodeError:
        known = None
    if isinstance(table, str):
        assert re.search("empty|named twice|NUL|UTF-8|quote", table), table
        return
    check_lines(content, table)
    if known is not None and b"\0" not in content:
        header, *records = [record for record in known[0] if record]
        blank = lambda record: len(record) == 1 and record[0].isspace()  # noqa: E731
        records = [record for record in records if len(record) == len(header) or not blank(record)]
        assert len(table) == len(records), "as many as an independent reading finds"
        assert [list(row.values()) for row in table.rows] == [record for record in records if len(record) == len(header)]


def compressed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    return pa.compress(content, codec="zstd", asbytes=True) if name.endswith(".zst") else content


# ---- JSON

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def objects(draw) -> list[str]:
    """Sources of objects, mostly of one type."""
    found = []
    for row in range(draw(st.integers(0, 8))):
        one = {"text": mark(row), "label": row % 2, "tags": ["x"], "part": {"a": 1.5}}
        if draw(st.integers(0, 3)) == 0:
            one[draw(st.sampled_from(["label", "tags", "part", "new", "other"]))] = draw(values)
        source = json.dumps(one, ensure_ascii=draw(st.booleans()))
        if draw(st.integers(0, 9)) == 0:
            deep = "[" * 100_000
            source = draw(
                st.sampled_from(["{}", "[]", "3", f'{{"text": {deep}', '{"a": 1, "a": 2}', source + source, '{"a": NaN}'])
            )
        found.append(source)
    return found


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz", "a.jsonl.zst", "a.json"])
@many
@given(data=st.data())
def test_no_json_line_is_lost(name, data):
    newline, blank = data.draw(st.sampled_from(["\n", "\r\n"])), data.draw(st.sampled_from(["", "\n", " \n"]))
    content = data.draw(spoiled(objects().map(lambda found: encoded(blank + newline.join(found)))))
    table = read(name, compressed(name, content))
    if isinstance(table, str):  # a .json file that begins with a bracket is a list
        assert name == "a.json" or "not in range" in table
        assert content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") or "empty" in table or "not in range" in table, table
        return
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if not (name == "a.json" and text.lstrip().startswith("[")):
        lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
        assert len(table) == len(lines), "as many rows as lines that hold something"
        check_lines(content, table)
        for number, line in enumerate(lines):
            try:
                good = json.loads(line)
            except (ValueError, RecursionError):
                assert number in table.faults, f"{line!r} is not JSON"
            else:
                assert (isinstance(good, dict) and bool(good)) or number in table.faults
        read_rows = iter(table.rows)
        for number in range(len(table)):
            if number not in table.faults:
                assert same(json.loads(lines[number]), next(read_rows))


def same(given, stored) -> bool:
    """Whether a stored value is the given one; what is missing is None, and numbers may be fractions by now."""
    if isinstance(given, dict):
        return isinstance(stored, dict) and all(same(given.get(key), stored[key]) for key in stored) and set(given) <= set(stored)
    if isinstance(given, list):
        return isinstance(stored, list) and len(given) == len(stored) and all(map(same, given, stored))
    if isinstance(given, float) and given != given:
        return stored is None
    return given == stored and isinstance(given, bool) == isinstance(stored, bool)


@pytest.mark.parametrize("block", [7, 1 << 20])
@many
@given(data=st.data())
def test_no_element_of_a_list_is_lost(block, data):
    found = data.draw(objects())
    joined = data.draw(st.sampled_from([",", ", ", ",\n", " ,\r\n"])).join(found)
    content = data.draw(spoiled(st.just(encoded(f"[{joined}]"))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefinetune.readers.objects.BLOCK", block)
        table = read("a.json", content)
    try:
        whole = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        whole = None
    if isinstance(table, str):
        assert whole is None or not isinstance(whole, list) or "not in range" in table, table
    elif isinstance(whole, list):
        assert len(table) == len(whole)
        kept = [element for number, element in enumerate(whole) if number not in table.faults]
        assert all(map(same, kept, table.rows))
    elif content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        in_rows = {int(number) for row in table.rows for number in MARK.findall(repr(row))}
        in_faults = {int(number) for fault in table.faults.values() for number in MARK.findall(fault.reason)}
        starts = sorted(fault.line for fault in table.faults.values())
        for number in map(int, MARK.findall(content.decode("utf-8", "replace"))):
            assert number in in_rows | in_faults or starts, f"{number} is lost"


# ---- Parquet and Arrow


def batches(kind: str, rows: int, dictionary: bool) -> bytes:
    labels = pa.array([f"l{row % 3}" for row in range(rows)], pa.string())
    table = pa.table({
        "text": pa.array([mark(row) for row in range(rows)], pa.string()),
        "label": labels.dictionary_encode() if dictionary else labels,
        "tags": pa.array([[row, None] for row in range(rows)], pa.list_(pa.int64())),
    })  # fmt: skip
    out = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, out, row_group_size=3, write_page_checksum=True)
    else:
        new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with new(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
@many
@given(data=st.data())
def test_a_spoiled_binary_file_is_refused_or_read_whole(kind, data):
    rows = data.draw(st.integers(0, 9))
    valid = batches(kind, rows, data.draw(st.booleans()))
    content = data.draw(spoiled(st.just(valid)))
    table = read("a.parquet" if kind == "parquet" else "a.arrow", content)
    if content == valid:
        assert [row["text"] for row in table.rows] == [mark(row) for row in range(rows)]
        assert [row["label"] for row in table.rows] == [f"l{row % 3}" for row in range(rows)]
    elif isinstance(table, str):
        assert "could not be read as" in table or "named twice" in table
    elif kind == "parquet":
        assert len(table) == rows


@pytest.mark.parametrize("kind", ["parquet", "file", "stream", "a.csv.gz", "a.jsonl.zst", "a.json"])
@many
@given(data=st.data())
def test_a_file_that_is_cut_off_is_refused(kind, data):
    if kind in ("parquet", "file", "stream"):
        name, whole = ("a.parquet" if kind == "parquet" else "a.arrow"), batches(kind, 9, False)
    else:
        name = kind
        whole = compressed(name, json.dumps([{"text": mark(row)} for row in range(9)]).encode())
    assert isinstance(read(name, whole), Table)
    assert isinstance(read(name, whole[: data.draw(st.integers(1, len(whole) - 1))]), str)


def test_an_arrow_stream_that_is_cut_off_between_two_batches_is_refused():
    whole = batches("stream", 9, False)
    assert "does not end as an Arrow stream does" in read("a.arrow", whole[:-8])


def test_an_arrow_file_whose_texts_lie_outside_it_is_refused():
    out = io.BytesIO()
    with pa.ipc.new_stream(out, pa.schema({"text": pa.string()})) as writer:
        writer.write_batch(pa.record_batch([pa.array(["a", "b"], pa.string())], names=["text"]))
    offsets, beyond = (struct.pack("<3i", 0, 1, end) for end in (2, 1_000_000))
    before, found, after = out.getvalue().rpartition(offsets)
    assert found
    assert "could not be read as arrow" in read("a.arrow", before + beyond + after)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.zst", "a.json.gz"])
@many
@given(data=st.data())
def test_a_damaged_compressed_file_is_refused(name, data):
    lines = [json.dumps({"text": mark(row)}) for row in range(20)]
    content = "text\n" + "\n".join(map(mark, range(20))) if "csv" in name else "\n".join(lines)
    whole = compressed(name, content.encode())
    damaged = bytes(data.draw(spoiled(st.just(whole))))
    table = read(name, damaged)
    if damaged == whole:
        assert len(table) == 20
    elif damaged == b"":  # which `Files` refuses as empty
        assert isinstance(table, str) or len(table) == 0
    elif isinstance(table, Table) and name.endswith(".gz"):  # its time or name was changed; .zst may go without a checksum
        assert [int(MARK.search(row["text"])[1]) for row in table.rows] == list(range(20))


# ---- what was decided, case by case

CASES = {  # sentence -> (name, content, rows, {row: (line, part of the reason)}, blank lines)
    "blank lines are counted and are no rows": ("a.csv", "\ntext,label\na,b\n\r\n  \nc,d", 2, {}, 3),
    "a blank line in a text belongs to it": ("a.csv", 'text,label\n"a\n\nb",c\n', 1, {}, 0),
    "a header alone is a table without rows": ("a.csv", "text,label\n", 0, {}, 0),
    "a column without a name is read": ("a.csv", ",text\n0,a\n", 1, {}, 0),
    "old line ends are line ends": ("a.csv", "text,label\ra,b\rc\r", 1, {1: (3, "1 cells, but the header has 2")}, 0),
    "a quote that is never closed costs the lines to the end": (
        "a.csv", 'text,label\na,b\n"c,d\ne,f\n', 1, {1: (3, "opens in line 3"), 2: (4, "opens in line 3")}, 0),
    "a quote within a quoted text costs its lines": (
        "a.csv", 'text,label\n"c,d\n"e",f\ng,h\n', 1, {0: (2, "doubled"), 1: (3, "doubled")}, 0),
    "a NUL byte costs its row": ("a.csv", "text,label\na\0,b\nc,d\n", 1, {0: (2, "NUL")}, 0),
    "bytes of another encoding cost their row": (
        "a.csv", "text,label\né,b\nc,d\n".encode("latin-1"), 1, {0: (2, "byte 0xe9 is not valid UTF-8")}, 0),
    "a marker of byte order goes": ("a.jsonl", b"\xef\xbb\xbf" + b'{"a": 1}\n', 1, {}, 0),
    "a part of a marker is no marker": ("a.jsonl", b"\xef\xbb", 0, {0: (1, "not valid JSON")}, 0),
    "a key that stands twice costs its row": ("a.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n', 1, {1: (2, "stands twice: 'a'")}, 0),
    "a number beyond 64 bits costs its row": (
        "a.jsonl", '{"a": 1}\n{"a": 9223372036854775808}\n', 1, {1: (2, "9223372036854775808 is not accepted")}, 0),
    "a later type costs its row": ("a.jsonl", '{"a": 1}\n{"a": "1"}\n{"a": 0.5}\n', 2, {1: (2, "expected int64")}, 0),
    "true among fractions costs its row": (
        "a.jsonl", '{"a": [{"b": 0.5}]}\n{"a": [{"b": true}]}\n{"a": [{"b": 1}, {"b": null}]}\n', 2,
        {1: (2, "expected list<item: struct<b: double>>, as in the rows before")}, 0),
    "an object without keys costs its row": ("a.jsonl", '{"a": 1}\n{}\n', 1, {1: (2, "an object with keys")}, 0),
    "half of a character costs its row": ("a.jsonl", '{"a": "\\ud800"}\n{"a": "b"}\n', 1, {0: (1, "ud800 alone")}, 0),
    "a list may stand on many lines": ("a.json", '[\n{"a": 1},\n{"a" 2},\n{"a": 3}]', 2, {1: (3, "not valid JSON")}, 0),
    "a comma too many is a fault": ("a.json", '[{"a": 1},]', 1, {1: (1, "not valid JSON")}, 0),
    "a list without elements has no rows": ("a.json", " [ ] ", 0, {}, 0),
    "lines in a .json file are lines": ("a.json", '{"a": 1}\n{"a": 2}\n', 2, {}, 0),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CASES)
def test_what_a_file_holds(sentence):
    name, content, rows, faults, blank_lines = CASES[sentence]
    table = read(name, content if isinstance(content, bytes) else content.encode())
    assert len(table.rows) == rows
    assert {row: fault.line for row, fault in table.faults.items()} == {row: line for row, (line, _) in faults.items()}
    for row, (_, reason) in faults.items():
        assert reason in table.faults[row].reason
    assert table.blank_lines == blank_lines


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,text\na,b\n", "columns named twice: text"),
        ("a.csv", "\n \n".replace(" ", ""), "the file is empty"),
        ("a.csv", "t\0xt\n", "a NUL character; is this a text file"),
        ("a.csv", '"text\n', "a quote that opens in line 1 is never closed"),
        ("a.json", '[{"a": 1}, {"a": 2', r"row 1 \(line 1\): begins here and is never closed"),
        ("a.json", '[{"a": 1}] {"a": 2}', r"the list ends at element 0, but '\{\"a\": 2\}' follows"),
        ("a.csv.gz", "text\na\n", "could not be read as csv: .*header check"),
        ("a.parquet", "PAR1", "could not be read as parquet"),
        ("a.arrow", "ARROW1", "could not be read as arrow"),
    ],
)
def test_a_file_that_is_no_table_is_refused(name, content, message):
    assert re.search(message, read(name, content.encode()))


def test_a_long_file_is_read_in_pieces_whose_columns_grow(monkeypatch):
    monkeypatch.setattr(collector, "CHUNK", 10)
    lines = [json.dumps({"a": row} if row < 25 else {"a": row + 0.5, "b": {"c": [str(row)]}}) for row in range(95)]
    lines[33] = '{"a": "x"}'
    table = read("a.jsonl", "\n".join(lines).encode())
    assert list(table.faults) == [33]
    assert [row["a"] for row in table.rows] == [row if row < 25 else row + 0.5 for row in range(95) if row != 33]
    assert [row["b"] for row in table.rows] == [None if row < 25 else {"c": [str(row)]} for row in range(95) if row != 33]


def test_a_hopeless_file_is_given_up_early(monkeypatch, tmp_path):
    monkeypatch.setattr(collector, "CHUNK", 100)
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "ragged\n" * 1_000_000)
    with pytest.raises(
        InputError, match=r"a\.csv, row 0 \(line 2\): 1 cells.*rows of the first [0-9,]+ cannot be used"
    ) as caught:
        read_file(path, tmp_path, allowed=0.01)
    assert int(re.search(r"of the first ([0-9,]+)", str(caught.value))[1].replace(",", "")) < 2 * 0.01 * 1_000_000


def test_a_damaged_table_in_the_cache_is_read_again(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "a,b\n" * 100 + "ragged\n")
    read_file(path, tmp_path / "cache")
    [folder] = (tmp_path / "cache" / "tables").iterdir()
    for file in ("rows.arrow", "faults.jsonl", "manifest.json"):
        for harm in (lambda one: one.write_bytes(one.read_bytes()[:-5]), Path.unlink):
            harm(folder / file)
            table = read_file(path, tmp_path / "cache")
            assert (len(table.rows), list(table.faults)) == (100, [100])


def test_a_file_is_hashed_once_while_nobody_touches_it(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("text\na\n")
    hashed, real = [], kinds.hashlib.file_digest
    monkeypatch.setattr(kinds.hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or real(file, kind))
    for _ in range(3):
        read_file(path, tmp_path / "cache")
    assert hashed == [str(path)]
    path.write_text("text\nb\n")
    assert read_file(path, tmp_path / "cache").rows[0] == {"text": "b"}
    assert len(hashed) == 2
