"""Golden files: texts in Parquet and behind gzip and zstd, as pyarrow, zstandard and Python's gzip write them.

Writes datasets/CASE.parquet, datasets/CASE.jsonl.gz and the like, and datasets/expected.json: `texts`, lists of texts
(null where a row has none), and `files`, for each file the key of its texts and which list they are. Every case sets one thing that a reader may trip over:
codec, encoding, version of the data pages, row groups, nulls, the type of the column, other columns beside it.

What is written is read back with pyarrow and compared, and so are the encodings: a case that pyarrow lays out otherwise
than its name says is an error.
"""

import gzip
import io
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from common import out_directory

SENTENCES = [
    "the ship is on an even keel",
    "",
    "Größe, naïve, café, İstanbul",
    "日本語のテキスト und 中文",
    "👩‍🚀🦀 ok\n\twith a line\r\nand another",
    "a NUL \x00 is a character",
]


def texts(count, distinct=None):
    """`count` texts, of which at most `distinct` differ."""
    numbers = range(count) if distinct is None else [n % distinct for n in range(count)]
    return [f"{n}: " + " ".join(SENTENCES[(n + k) % len(SENTENCES)] for k in range(n % 4)) for n in numbers]


def with_nulls(values):
    return [None if n % 3 == 1 or 20 <= n < 40 else value for n, value in enumerate(values)]


def parquet_cases():
    """Name -> (key, texts, type of the column, encodings that must be there, options of the writer)."""
    plain = {"use_dictionary": False}
    some = texts(60)
    few = texts(120, 7)
    string = pa.string()
    return {
        "none_plain_v1": ("text", some, string, "PLAIN", plain | {"compression": "none", "row_group_size": 23}),
        "none_dict_v2": ("text", few, string, "RLE_DICTIONARY", {"compression": "none", "data_page_version": "2.0"}),
        "snappy_dict_v1": ("text", few, string, "RLE_DICTIONARY", {"compression": "snappy", "row_group_size": 55}),
        "snappy_plain_v2": ("text", some, string, "PLAIN", plain | {"compression": "snappy", "data_page_version": "2.0"}),
        "gzip_plain_v1": ("text", some, string, "PLAIN", plain | {"compression": "gzip"}),
        "gzip_dict_v2": ("text", few, string, "RLE_DICTIONARY", {"compression": "gzip", "data_page_version": "2.0"}),
        "zstd_dict_v1": ("text", few, string, "RLE_DICTIONARY", {"compression": "zstd"}),
        "zstd_plain_v2": (
            "text", some, string, "PLAIN", plain | {"compression": "zstd", "data_page_version": "2.0", "row_group_size": 31},
        ),
        # The dictionary grows too large on the way, and the pages after that are plain.
        "dict_then_plain": (
            "text", texts(150), string, "PLAIN",
            {"compression": "none", "dictionary_pagesize_limit": 600, "data_page_size": 500, "write_batch_size": 20},
        ),
        # Many small pages, with checksums.
        "pages": (
            "text", texts(150), string, "PLAIN",
            plain | {"compression": "snappy", "data_page_size": 256, "write_batch_size": 10, "write_page_checksum": True},
        ),
        "nulls_plain_v1": ("text", with_nulls(some), string, "PLAIN", plain | {"compression": "snappy"}),
        "nulls_dict_v2": (
            "text", with_nulls(few), string, "RLE_DICTIONARY",
            {"compression": "zstd", "data_page_version": "2.0", "row_group_size": 50},
        ),
        "nulls_only": ("text", [None] * 50, string, None, {"compression": "snappy", "row_group_size": 20}),
        "no_rows": ("text", [], string, None, {"compression": "snappy"}),
        "required": ("text", some, pa.field("text", string, nullable=False), "PLAIN", plain | {"compression": "snappy"}),
        "large_string": ("text", some, pa.large_string(), "PLAIN", plain | {"compression": "snappy"}),
        "binary": ("content", with_nulls(some), pa.binary(), "PLAIN", plain | {"compression": "snappy"}),
        "delta_length": (
            "text", with_nulls(texts(150)), string, "DELTA_LENGTH_BYTE_ARRAY",
            plain | {"compression": "snappy", "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}},
        ),
        "delta_strings": (
            "text", texts(150), string, "DELTA_BYTE_ARRAY",
            plain | {"compression": "zstd", "column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "data_page_version": "2.0"},
        ),
        "neighbours": ("text", some, string, "RLE_DICTIONARY", {"compression": "snappy", "row_group_size": 25}),
    }


def table(name, key, values, kind):
    field = kind if isinstance(kind, pa.Field) else pa.field(key, kind)
    if pa.types.is_binary(field.type):
        values = [None if value is None else value.encode() for value in values]
    columns, fields = [pa.array(values, field.type)], [field]
    if name == "neighbours":
        n = len(values)
        for at, field, array in [
            (0, "id", pa.array(range(n))),
            (1, "score", pa.array([k / 4 for k in range(n)], pa.float32())),
            (2, "tags", pa.array([["a", "b"][: k % 3] for k in range(n)])),
            (4, "meta", pa.array([{"text": "not this", "lang": "en"}] * n)),
            (5, "kept", pa.array([k % 2 == 0 for k in range(n)])),
        ]:
            columns.insert(at, array)
            fields.insert(at, pa.field(field, array.type))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def write_parquet(out):
    expected = {}
    for name, (key, values, kind, encoding, options) in parquet_cases().items():
        path = out / f"{name}.parquet"
        pq.write_table(table(name, key, values, kind), path, **options)
        read = [v.decode() if isinstance(v, bytes) else v for v in pq.read_table(path)[key].to_pylist()]
        assert read == values, name
        footer = pq.ParquetFile(path).metadata
        groups = [footer.row_group(g) for g in range(footer.num_row_groups)]
        columns = [group.column(c) for group in groups for c in range(group.num_columns)]
        of_key = [column for column in columns if column.path_in_schema == key]
        assert encoding is None or all(encoding in column.encodings for column in of_key), (name, of_key[0].encodings)
        assert len(groups) > 1 or "row_group_size" not in options, name
        expected[path.name] = {"key": key, "texts": values}
    # What is refused.
    pq.write_table(pa.table({"text": [1, 2, 3], "body": ["a", "b", "c"]}), out / "refused_integers.parquet")
    pq.write_table(pa.table({"text": [["a"], ["b", "c"]]}), out / "refused_list.parquet")
    pq.write_table(pa.table({"text": [b"fine", b"caf\xe9"]}), out / "refused_latin1.parquet", use_dictionary=False)
    pq.write_table(pa.table({"text": ["a", "b"]}), out / "refused_brotli.parquet", compression="brotli")
    return expected


def write_compressed(out):
    values = texts(60)
    lines = "".join(json.dumps({"id": n, "text": value}) + "\n" for n, value in enumerate(values)).encode()
    half = len(lines) // 2
    plain = "".join(values[k] + "\n" for k in range(0, 60, 9) if "\x00" not in values[k]).encode()

    def gz(*parts):
        buffer = io.BytesIO()
        for part in parts:
            # No time, so that the bytes are the same on every run.
            with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as file:
                file.write(part)
        return buffer.getvalue()

    def zst(*parts, **options):
        return b"".join(zstandard.ZstdCompressor(**options).compress(part) for part in parts)

    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    files = {
        "lines.jsonl.gz": gz(lines),
        # Members one behind the other, as `cat a.gz b.gz` makes them, one of them empty.
        "members.jsonl.gz": gz(lines[:half], b"", lines[half:]),
        "lines.jsonl.zst": zst(lines, level=3, write_checksum=True),
        "frames.jsonl.zst": skipped + zst(lines[:half], level=19) + skipped + zst(b"") + zst(lines[half:], write_checksum=True),
        "lines.json.gz": gz(lines),
    }
    expected = {name: {"key": "text", "texts": values} for name in files}
    files |= {"plain.txt.gz": gz(plain), "plain.txt.zst": zst(plain)}
    expected |= {name: {"key": "text", "texts": [plain.decode()]} for name in ["plain.txt.gz", "plain.txt.zst"]}
    for name, content in files.items():
        (out / name).write_bytes(content)
    # A frame that asks for a window of 2 GiB, as --long=31 makes them: the header alone says so.
    (out / "refused_window.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes([0x00, (31 - 10) << 3]) + zst(lines)[6:])
    return expected


def main():
    out = out_directory(__doc__) / "datasets"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    lists, files = [], {}
    for name, case in (write_parquet(out) | write_compressed(out)).items():
        if case["texts"] not in lists:
            lists.append(case["texts"])
        files[name] = {"key": case["key"], "texts": lists.index(case["texts"])}
    text = json.dumps({"texts": lists, "files": files}, ensure_ascii=True, indent=None)
    text = text.replace("], [", "],\n[").replace('}, "', '},\n"')
    (out / "expected.json").write_text(text + "\n", encoding="utf-8")
    files = sorted(out.iterdir())
    print(f"datasets: {len(files)} files, {sum(file.stat().st_size for file in files)} bytes")


if __name__ == "__main__":
    main()
