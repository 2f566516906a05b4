r"""Find the formulas of a text and write them in one notation: LaTeX between `\(` and `\)`.

LaTeX, Unicode maths and plain notation become the same formula: `A^T A`, `$A^\top A$` and `AᵀA` are equal.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any

from dcdt.utils.errors import needs_extra

MAX_ATOMS = 100  # letters, numbers and signs of a plain formula
_NAMES = (  # words that are symbols in plain notation
    "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|pi|sigma|phi|omega|Lambda|Sigma|det|dim|rank|span|trace|rref|proj|"
    "null|sin|cos|tan|log|ln|exp|lim|max|min|sqrt|sum|int"
)
_WORDS = "[Aa][mnst]|[Bb][ey]|[DdGgNnSsTt]o|[HhWw]e|[Ii][fnst]|[Mm][ey]|[Oo][fknr]|[Uu][ps]|vs"  # no product
_COMMANDS = {  # written otherwise
    **{"leq": "\\le", "leqslant": "\\le", "geq": "\\ge", "geqslant": "\\ge", "neq": "\\ne", "rightarrow": "\\to"},
    **{"dfrac": "\\frac", "tfrac": "\\frac", "cdots": "\\dots", "ldots": "\\dots", "Vert": "\\|", "parallel": "\\|"},
    **{"lvert": "|", "rvert": "|", "lbrace": "\\{", "rbrace": "\\}", "top": "T", "intercal": "T", "overline": "\\bar"},
}
_SYMBOLS = {"\u00d7": "\\times ", "·": "\\cdot ", "→": "\\to ", "…": "\\dots ", "\u2212": "-", "\u2032": "'"}
_PLAIN = {"<=": "\\le", ">=": "\\ge", "!=": "\\ne", "->": "\\to", "...": "\\dots"}
_PREFIX = re.compile(r"\^|_|\\(?:sqrt|hat|vec|bar|tilde|overline|dot|widehat)")  # of one argument
_SUPER, _SUB = "²³¹ʰ-ʸˠ-ˤᴬᴮᴰ-ᴺᴼ-ᵍᵏ-ᵡᵸᶛ-ᶿ⁰ⁱ⁴-ⁿ", "ᵢ-ᵪ₀-₎ₐ-ₜ"  # as Unicode decomposes them
_SIGN = "¬±\u00d7÷‖\u2044⅀-⅄⅋←-↔↚↛↠↣↦↮⇎⇏⇒⇔⇴-\u22ff⟀-⟄⟇-⟥⟰-⟿⤀-⦂⦙-⧗⧜-⧻⧾-⫿"  # of its category Sm
_GREEK = (  # and letters of mathematical fonts
    "\u0391-Ωα-ωϕϵ\U0001d400-\U0001d7ff\u2102\u210a-\u2113\u2115\u2119-\u211d\u2124\u2128\u212c\u212d"
    "\u212f-\u2131\u2133\u2134\u213c-\u2140\u2145-\u2149"
)
_LATIN = "A-Za-zÀ-ÖØ-öø-ɏ"
_GROUP = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_SCRIPT = rf"(?:{_GROUP}|T|-?\d+|\\[A-Za-z]+|[A-Za-z](?![A-Za-z])|[*+'])"
_ATOM = re.compile(  # kinds: command, power, subscript, number, Greek, applied name, function, variable, two, ...
    rf"""(?P<c>\\begin\{{\w+\*?\}}.{{0,999}}?\\end\{{\w+\*?\}}|\\[A-Za-z]{{2,}}(?:{_GROUP})*|[∑∫∏∂∇√])
    |(?P<p>\^{_SCRIPT}|[{_SUPER}]+)|(?P<s>_{_SCRIPT}|[{_SUB}]+)|(?P<n>\d+(?:\.\d+)?|\.\.\.|…)|(?P<g>[{_GREEK}])
    |(?P<a>(?<![{_LATIN}])(?:{_NAMES}|[B-HJ-Zb-z])(?=\())|(?P<f>(?<![{_LATIN}])(?:{_NAMES})(?![{_LATIN}]))
    |(?P<v>(?:(?<![{_LATIN}])|(?<=\^T))[A-Za-z](?![{_LATIN}]))
    |(?P<w>(?:(?:(?<![{_LATIN}])|(?<=\^T))(?!{_WORDS})[A-Za-z]{{2}}|(?<=\d)(?!st|nd|rd|th)[a-z]{{2,3}})(?![{_LATIN}]))
    |(?P<r>[<>!]=|[=<>]|->|[{_SIGN}+*])|(?P<m>[-/'])|(?P<l>\\?\||!)|(?P<o>[(\[])|(?P<e>[)\]])|(?P<k>[,;])""",
    re.X | re.S,
)
_OPERAND = "cpsngafvwe"
_EVIDENCE = re.compile(rf"[psgc]|(?:^|[{_OPERAND}l])r[{_OPERAND}lrmo]|ao[^o]")
_START = re.compile(
    rf"(?<![{_LATIN}\d_\\@#&~'\u2019])(?:(?:{_NAMES}|[A-Za-z]{{1,2}})(?![{_LATIN}])|[\d(\[|\\-])|(?<!\\)[{_SIGN}{_GREEK}]"
)
_HINT = re.compile(rf"[\\^_=$+<>{_SIGN}{_GREEK}{_SUPER}{_SUB}]|\w\(")
_PROTECTED = re.compile(  # lines of code or Greek, code in backticks, addresses, files, tags
    r"^[^\n]*(?:#include|::|==|[-+*/]=|&&|\+\+ |;\s*$|\b(?:if|for|while)\s?\(|\w\(\)|[\u0370-\u03ff\u1f00-\u1fff]{3}"
    r"|(?<!\\)\b(?:int|double|float|char|bool|auto|const|let|var|void|return|def|import)\s+\w+\s*[=;(])[^\n]*"
    r"|`[^`\n]*`|\b[\w.+-]{1,64}@\S+|\b\w{1,20}://\S+|www\.\S+|\b[A-Za-z]:\\\S*|[\w./-]{0,99}\.[A-Za-z]\w{1,4}\b|</?[a-z]+\d?/?>|\b\w\+\+",
    re.M,
)
_DELIMITED = re.compile(
    r"(?<!\\)\\\(((?:(?!(?<!\\)\\\().)+?)\\\)|(?<!\\)\\\[(.+?)\\\]|(?<!\\)\$\$([^$]+)\$\$|(?<![\\$\w])\$(?P<dollars>(?:[^$\\\n]|\\[^\n])+?)(?<!\\)\$(?![\dA-Z$])",
    re.S,
)
_REWRITES = (
    (r"\\(?:left|right|q?quad|displaystyle|[bB]ig[lr]?|[lL]arge|[hH]uge|blue|green|red|orange|pink)(?![a-z])", ""),
    (r"(\\\\)|\\[,;!: ]|~", r"\1"),
    (r"\\(?:math(?:bf|rm|it|bb|cal|sf)|boldsymbol|bm|operatorname|rm)\s*\{([^{}]*)\}", r"\1"),
    (rf"\\text\s*\{{\s*({_NAMES})\s*\}}", r"\\\1"),
    (r"(?<![A-Za-z\\])sqrt\(([^()]*)\)", r"\\sqrt{\1}"),
    (rf"(?<![A-Za-z\\])(?:{_NAMES})(?![A-Za-z])", r"\\\g<0>"),
    (rf"[{_SUPER}]+", r"^{\g<0>}"),
    (rf"[{_SUB}]+", r"_{\g<0>}"),
    (rf"((?<![A-Za-z\\{{}}^_])[A-Za-z]|[{_GREEK}])(\d+)(?![\w.])", r"\1_{\2}"),
    (r"(\d\s+)x(?=\s+\d)", "\\1\u00d7"),
    (r"([\^_])\s*(-\d+)", r"\1{\2}"),
)
_TOKEN = re.compile(r"\\text\s*\{[^{}]*\}|\\([A-Za-z]+)|\\.|[<>!]=|->|\.\.\.|\d+(?:\.\d+)?|.", re.S)
_SCRIPTED = re.compile(rf"(?:\\[A-Za-z]+|[A-Za-z]|\d+(?:\.\d+)?)(?: ?[\^_]{_GROUP})+")
_RELATION = re.compile(r"(\\(?:le|ge|ne|to)(?![A-Za-z])|[=<>])")


def formula_tokens(text: str) -> list[str]:
    r"""Return the tokens of the formulas of a text: each symbol with scripts, each relation with both its sides.

    Letters, operators and commands alone are in so few videos that they would outweigh words.

    >>> formula_tokens("why is A^T x <= b?")
    ['$A^{T}', '$A^{T}x\\leb']
    """
    tokens = []
    for formula in (part for is_formula, part in split_formulas(text) if is_formula):
        tokens += [f"${match[0]}" for match in _SCRIPTED.finditer(formula)]
        sides = [side.strip() for side in _RELATION.split(formula)]
        tokens += [f"${''.join(sides[i : i + 3])}" for i in range(0, len(sides) - 2, 2)]
    return tokens


def split_formulas(text: str) -> list[tuple[bool, str]]:
    r"""Split a text into prose (False, as written) and formulas (True, LaTeX); `\(` marks all formulas of its text."""
    if not _HINT.search(text):
        return [(False, text)]
    parts = ((is_formula, text[start:end]) for is_formula, start, end in _spans(text))
    return [(is_formula, (canonical_latex(part) or part) if is_formula else part) for is_formula, part in parts]


def _spans(text: str) -> Iterator[tuple[bool, int, int]]:
    """Yield (is a formula, start, end) of the parts of a text, without delimiters."""
    is_marked, prose, position = bool(re.search(r"(?<!\\)\\\(", text)), 0, 0
    while match := _DELIMITED.search(text, position):
        if match[1] is None and (is_marked or (match["dollars"] and not _is_maths(match["dollars"]))):
            position = match.start() + 1
            continue
        yield from _bare_spans(text, prose, match.start(), is_marked)
        yield True, *match.span(match.lastindex or 0)
        prose = position = match.end()
    yield from _bare_spans(text, prose, len(text), is_marked)


def _is_maths(content: str) -> bool:
    """Tell what dollars may hold, such as `x`, from the text between two prices."""
    if content[0].isspace() is not content[-1].isspace() or re.search(r"(?<![\\{a-z])[a-z]{3,} [a-z]{2,}", content):
        return "\\" in content
    return bool(re.fullmatch(r"\s*\w+\s*", content) or re.search(rf"[-\\^_=<>+*/|(){_SIGN}{_GREEK}]", content))


def _bare_spans(text: str, prose: int, end: int, is_marked: bool) -> Iterator[tuple[bool, int, int]]:
    """Split a text without delimiters at its Unicode and plain formulas, outside addresses, files and code."""
    position = end if is_marked else prose
    while position < end:
        gap = _PROTECTED.search(text, position, end)
        while match := _START.search(text, position, gap.start() if gap else end):
            position = _formula_end(text, match.start(), gap.start() if gap else end)
            if position:
                yield from ((False, prose, match.start()), (True, match.start(), position))
                prose = position
            position = position or match.end()
        position = gap.end() if gap else end
    yield False, prose, end


def _formula_end(text: str, start: int, stop: int) -> int:
    """Return the end of the plain formula that starts here, 0 if none does."""
    kinds, ends, depth, balanced, position = "", [start], 0, 0, start
    while len(kinds) < MAX_ATOMS and (atom := _ATOM.match(text, position, stop)):
        kind = str(atom.lastgroup)
        bases = _OPERAND + "l" if kind == "p" else _OPERAND.replace("w", "")  # x_1, but no my_1
        depth += (kind == "o") - (kind == "e")
        if depth < (kind == "k") or (kind in "ps" and (kinds[-1:] not in [*bases] or ends[-1] < atom.start())):
            break
        kinds += kind
        ends.append(atom.end())
        balanced = balanced if depth else len(kinds)
        position = re.compile(r"[ \t]*").match(text, atom.end(), stop).end()  # type: ignore[union-attr]
    while balanced and not _may_end(text, kinds[balanced - 1], ends[balanced]):  # with a sign, in a word
        balanced -= 1
    kinds = kinds[:balanced]
    if start and re.match("[aAI] ", text[start : start + 2]) and kinds[1:2] in [*_OPERAND]:
        return 0  # an article
    may_start = kinds[:1] in [*_OPERAND, "o", "l"] or text[start] == "-"
    is_formula = may_start and re.search("[cpsgafvw]", kinds) and _EVIDENCE.search(kinds)
    return ends[balanced] if is_formula else 0


def _may_end(text: str, kind: str, end: int) -> bool:
    is_in_word = re.match(rf"[{_LATIN}\d_^@]|-[{_LATIN}]", text[end : end + 2]) and text[end - 1] not in ")]}"
    return not is_in_word and (kind in _OPERAND + "l" or text[end - 1] == "'")


@cache
def check_parser() -> Any:  # noqa: ANN401 - a module
    """Import the parser of LaTeX, or raise UserError."""
    with needs_extra("reading formulas", "formulas", "pylatexenc", or_else=", or leave the option out"):
        import pylatexenc.latexencode
    return pylatexenc


@cache
def _symbol(char: str) -> str:
    """Translate a character to LaTeX; what has no command stays."""
    if char.isascii() or char in _SYMBOLS:
        return _SYMBOLS.get(char, char)
    if re.match("<(font|super|sub)>", unicodedata.decomposition(char)):
        return _symbol(unicodedata.normalize("NFKC", char))
    rules = check_parser().latexencode.get_builtin_conversion_rules("defaults")
    command = re.search(r"\\(?!ensuremath)[A-Za-z]+", rules[0].rule.get(ord(char), ""))
    return f"{command[0]} " if command and re.match(f"[{_SIGN}{_GREEK}]", char) else char


def canonical_latex(formula: str) -> str:
    r"""Write a formula in one way: Unicode and plain notation as LaTeX, scripts in braces, no spacing.

    >>> canonical_latex("λ1 ≤ \\dfrac{x^2}{2}")
    '\\lambda_{1}\\le\\frac{x^{2}}{2}'
    """
    for pattern, replacement in _REWRITES:
        formula = re.sub(pattern, replacement, formula)
    out, needs_braces = "", False
    for token in _TOKEN.finditer("".join(map(_symbol, formula))):
        text = _COMMANDS.get(token[1], token[0]) if token[1] else _PLAIN.get(token[0], token[0])
        if not text.strip():
            continue
        if needs_braces and text[0] not in "{[}":
            text = f"{{{text}}}"
        elif re.search(r"\\[A-Za-z]+ [A-Za-z]$|[^\W\d_] \d$", f"{out[-40:]} {text[0]}"):
            text = f" {text}"
        needs_braces = bool(_PREFIX.fullmatch(text.strip()))
        out += text
    return out
