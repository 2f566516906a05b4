"""Changes to real files that readers stumble over: cuts, repeats, and the odd values that formats allow."""

TOKENS = [
    b'"',
    b"'",
    b"\n",
    b"\r\n",
    b"\r",
    b"\t",
    b",",
    b";",
    b"|",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xc3",
    b"\xed\xa0\x80",
    b"{}",
    b"[]",
    b"null",
    b"true",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"0",
    b"1e-400",
    b"9" * 400,
    b"0x10",
    b"\\ud800",
    b"\\u0000",
    b"\xe2\x80\xa8",
    b"\xe2\x80\xae",
    b"${oc.env:HOME}",
    b"${now:%Y}",
    b"_target_: os.system",
    b"&a",
    b"*a",
    b"!!python/object/apply:os.system",
    b"../../../../etc/passwd",
    b"/dev/zero",
    b"<script>alert(1)</script>",
    b"=cmd|' /C calc'!A0",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"(" * 500,
    b"%00",
    b"%2e%2e/",
    b"a" * 5000,
    b"2026-01-31T12:00:00",
    b"0001-01-01",
    b"9999-12-31T23:59:59+14:00",
    b"1_000",
    b"\xd9\xa1",
    b"--",
    b"- - - -",
    b"? ",
    b"--- ",
    b"%YAML 9",
    b"PAR1",
    b"PK\x03\x04",
    b"\x80\x04\x95",
    b"\xff\xff\xff\x7f",
    b"\xff" * 8,
]


def mutate(data, steps, other=b""):
    """Apply steps, each a kind, two places from 0 to 1 and a number, to some bytes.

    Args:
        data: what to change.
        steps: (kind, start, end, number), of `KINDS`, [0, 1], [0, 1] and from 0.
        other: another input, of which a part may be put in.
    """
    for kind, one, two, number in steps:
        start, end = sorted((round(one * len(data)), round(two * len(data))))
        data = KINDS[kind % len(KINDS)](data, start, end, number, other)
    return data[:200_000]


def _insert(data, start, end, number, other):
    return data[:start] + TOKENS[number % len(TOKENS)] + data[start:]


def _replace(data, start, end, number, other):
    return data[:start] + TOKENS[number % len(TOKENS)] + data[min(end, start + 12) :]


def _cut(data, start, end, number, other):
    return data[:start] + data[end:]


def _nibble(data, start, end, number, other):
    return data[:start] + data[start + 1 + number % 4 :]


def _truncate(data, start, end, number, other):
    return data[:end]


def _repeat(data, start, end, number, other):
    return data[:end] + data[start : min(end, start + 2000)] + data[end:]


def _flip(data, start, end, number, other):
    return data[:start] + bytes([number % 256]) + data[start + 1 :]


def _word(data, start, end, number, other):
    """Replace a whole word, which finds the values of JSON, YAML and tables more often than places do."""
    words = data.split(b" ")
    at = start % len(words)
    return b" ".join([*words[:at], TOKENS[number % len(TOKENS)], *words[at + 1 :]])


def _line(data, start, end, number, other):
    """Repeat, drop or move a line."""
    lines = data.split(b"\n")
    at, to = start % len(lines), end % len(lines)
    line = lines.pop(at) if number % 2 else lines[at]
    if number % 3:
        lines.insert(to, line)
    return b"\n".join(lines)


def _splice(data, start, end, number, other):
    return data[:start] + other[number % max(1, len(other)) :][:500] + data[end:]


KINDS = [_insert, _replace, _cut, _nibble, _truncate, _repeat, _flip, _word, _line, _splice]
