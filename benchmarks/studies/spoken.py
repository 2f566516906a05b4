"""Read formulas aloud, for embedders that know words better than LaTeX."""

import re
from collections.abc import Sequence
from typing import Any

from pylatexenc.latexwalker import LatexWalker

from dcdt.data.formulas import split_formulas


def _table(entries: str) -> dict[str, str]:
    return {key.strip(): words.strip() for key, words in (entry.split(":") for entry in entries.split(";"))}


SIGNS = _table(  # outside commands
    "=: equals; +: plus; -: minus; *: times; /: over; <: is less than; >: is greater than; !: factorial; ': prime;"
    "&: ,; |:; (:; ):; [:; ]:; ~:"
)
COMMANDS = _table(  # the others are read by their names
    "le: is at most; ge: is at least; ne: is not equal to; approx: is about; equiv: is equivalent to; mapsto: maps to;"
    "Rightarrow: implies; iff: if and only if; sim: is similar to; pm: plus or minus; mp: minus or plus; cdot: dot;"
    "div: divided by; notin: not in; subset: is a subset of; subseteq: is a subset of; perp: perpendicular to;"
    "cup: union; cap: intersection; oplus: direct sum; otimes: tensor; emptyset: empty set; forall: for all;"
    "exists: there exists; infty: infinity; nabla: gradient; sum: sum of; prod: product of; int: integral of;"
    "lim: limit of; det: determinant of; dim: dimension of; rank: rank of; trace: trace of; span: span of;"
    "rref: reduced row echelon form of; proj: projection; null: null space of; ker: kernel of; sin: sine; cos: cosine;"
    "tan: tangent; ln: natural log; exp: exponential of; max: maximum of; min: minimum of; dots: and so on;"
    "circ: composed with; frac: over; |: norm; {:; }:; langle:; rangle:; ell: l; %: percent"
) | {"\\": ";"}
POWERS = _table(
    "T: transpose; -1: inverse; 2: squared; 3: cubed; H: conjugate transpose; *: star; +: pseudoinverse; ': prime;"
    r"-T: inverse transpose; \circ: degrees; \perp: perp; \prime: prime"
)
WRAPPED = _table(  # commands of one argument
    "hat: {} hat; bar: {} bar; tilde: {} tilde; dot: {} dot; vec: vector {};sqrt: square root of {}; text: {}"
)
_FUNCTION = re.compile(r"([fghuTF])\(")
_LEXEME = re.compile(r" of |\d+(?:[.,]\d+)*|[A-Z]{4,}|[a-z]{5,}|.", re.S)  # names of that length are words


def speak_formulas(text: str) -> str:
    """Write the formulas of a text as they are read aloud; the rest stays as it is.

    >>> speak_formulas("why is $A^T A x = A^T b$ solvable?")
    'why is A transpose A x equals A transpose b solvable?'
    """
    out = ""
    for is_formula, part in split_formulas(text):
        words = read_aloud(part) if is_formula else part
        out += " " * (out[-1:].isalnum() and words[:1].isalnum()) + words  # words of formula and prose do not touch
    return out


def read_aloud(latex: str) -> str:
    r"""Read a formula, in the notation of `split_formulas`, aloud.

    >>> read_aloud("\\frac{1}{\\sqrt{x^{2}}}\\le\\lambda_{1}")
    '1 over square root of x squared is at most lambda 1'
    """
    walker = LatexWalker(latex, tolerant_parsing=True)
    try:
        return " ".join(_words(walker.get_latex_nodes()[0]).split()).replace(" ,", ",").replace(" ;", ";")
    except RecursionError:  # nested hundreds deep
        return latex


def _words(nodes: Sequence[Any]) -> str:
    """Read nodes of a formula; a node after `^` or `_` is a script."""
    words, mark = [""], ""
    for node in nodes:
        kind, latex = type(node).__name__, node.latex_verbatim()
        if mark:
            spoken = _words([node])
            words.append(spoken if mark == "_" else POWERS.get(latex.strip("{} "), f"to the {spoken}"))
            mark = ""
        elif kind == "LatexCharsNode":
            mark = latex[-1:] if latex.endswith(("^", "_")) else ""
            of = _FUNCTION.sub(r"\1 of ", latex.rstrip("^_"))
            words += [SIGNS.get(match[0], match[0]) for match in _LEXEME.finditer(of)]
        elif kind == "LatexMacroNode":
            words.append(_macro(node))
        elif hasattr(node, "nodelist"):  # a group or an environment
            words += ["matrix" if "matrix" in getattr(node, "environmentname", "") else "", _words(node.nodelist)]
        else:
            words.append(SIGNS.get(latex, latex))
    return " ".join(words)


def _macro(node: Any) -> str:  # noqa: ANN401
    arguments = [one for one in (node.nodeargd.argnlist if node.nodeargd else None) or [] if one is not None]
    words, name = [" ".join(_words([one]).split()) for one in arguments], node.macroname
    if name == "frac" and len(words) == 2:
        is_derivative = words[0] == "d" and words[1].startswith("d ")
        return f"derivative by {words[1][2:]} of" if is_derivative else " over ".join(words)
    if name in WRAPPED and words:
        return WRAPPED[name].format(arguments[0].latex_verbatim().strip("{}") if name == "text" else words[-1])
    return " ".join([COMMANDS.get(name, name), *words])
