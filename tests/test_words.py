"""Messages, docstrings and names of the app follow docs/writing.md; old patterns do not come back."""

import ast
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import pytest

LIB = Path(__file__).parents[1] / "apps" / "totalspineseg" / "totalspineseg_server"
REQUIRED = re.compile(r"\b(is|are) required\b|\brequired, got\b|\bmust be required\b")
"""A limit or a state that is worded like a wrong argument."""
NO_SENTENCE = re.compile(r"(Of|So|By|Nor|And|Which|What|Where|Whose|Told|Else|From so|As so)\b")
"""Beginnings of docstrings that are no sentence."""
NO_VERB = re.compile(r"(The|A|An|Whether|How|Those|This|That|All|Every|Each|None|When|Why|Who)\b")
"""Beginnings of functions' docstrings that say neither what is returned nor what is done."""
UNPLAIN = re.compile(
    r"""\b(trains?\ (and|n?or)\ judges?|all\ judge|never\ judges|against\ forgetting|[Mm]ade\ when\ missing)\b
    |(\bNone|\b[Ee]mpty|"")\ where\b
    |^(Maximum|Minimum)\b
    |\b[Tt]he\ host('s\b|\ (has|starts|would|loads|writes|deletes|moves|checks|asks)\b)
    |\b(anew|shall|back-ups?|belongs?\ into|so\ many)\b
    |(?<!here\ )\b(is|are)\ no\ (?!longer\b|more\b|such\b|[a-z]+er\ than\b)[a-z]+
    |\b(judgment|training|inference|prediction)\ that\ runs\b
    |\btakes?\ (it|them|all|its|the)\b[\w\ ]{0,20}\ away\b|\b(came|come)\ or\ (went|go)\b
    |\blabels?\ (does|do|can)\ ?not\ train\b|\blabels?\ trains?\b""",
    re.VERBOSE,
)
"""Words that readers had to read twice; see docs/writing.md for the plain ones."""
JOINED = re.compile(r"[.;] [a-z_]+: [A-Z]|\b(Args|Attributes|Returns|Yields|Raises): +\S")
"""Sections or arguments that share a line."""
PRIVATE_WORDS = frozenset(
    (
        *("told", "said", "shown", "meant", "came", "given", "kept", "taught", "drawn", "standing", "helped_by"),
        *("carried", "station", "spread", "meanwhile", "imprints", "stamps", "turns"),
    )
)
MAY_DEFINE = re.compile(rf"\b_*({'|'.join(PRIVATE_WORDS)})_*\s*(=(?!=)|[,:(]|\)|in\b)", re.IGNORECASE)
"""A private word where a name may be defined; most files have none and need not be parsed."""
FILES = [LIB.parent / "main.py", *sorted(path for path in LIB.rglob("*.py") if path != LIB / "__init__.py")]
ROOT = LIB.parents[2]
TESTS = sorted((ROOT / "tests").glob("test_*.py"))
SUPPORT = sorted({*(ROOT / "tools").rglob("*.py"), *(ROOT / "tests").rglob("*.py")} - set(TESTS))
PAGES = [
    *(
        path
        for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
        if path.stem not in ("CHANGELOG", "writing")
    ),
    *(LIB / "front" / "pages").rglob("*.js"),
    *(LIB / "front" / "pages").rglob("*.html"),
    *(LIB / "cohort").glob("*.js"),
]
MESSAGES = [*sorted(LIB.rglob("*messages.py")), LIB / "corrections" / "answers.py"]
"""Files that hold the sentences of a room, so that they can be read in a row and translated."""
FEW = 3
"""Largest number of sentences that a folder may have without such a file."""
END = re.compile(r"\.( \{\})?\Z")
"""The end of a sentence; a remedy or a reason from elsewhere may follow it."""
SCRIPT_NAME = re.compile(r"\b(?:const|let|function)\s+(\w+)")
"""A name that a script defines."""
CONSTANT = re.compile(r"^([A-Z][A-Z0-9_]*)(?:: [^=\n]+)? = ", re.MULTILINE)
"""A constant that a module sets."""
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@lru_cache(maxsize=1)
def nodes_of(text: str) -> tuple[ast.AST, ...]:
    """Return all parts of a Python file, the file first."""
    return tuple(ast.walk(ast.parse(text)))


def docstrings(nodes: Sequence[ast.AST]) -> Iterator[tuple[ast.AST, ast.Constant]]:
    """Yield what is described, and its description; constants are described by the string that follows them."""
    for node in nodes:
        for k, line in enumerate(getattr(node, "body", ()) if not isinstance(node, ast.Lambda | ast.IfExp) else ()):
            if (
                isinstance(line, ast.Expr)
                and isinstance(line.value, ast.Constant)
                and isinstance(line.value.value, str)
            ):
                yield (node if k == 0 else node.body[k - 1]), line.value  # type: ignore[attr-defined]


def is_function(node: ast.AST) -> bool:
    """Return whether a definition is described by what it does; a property is described as a value."""
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not any(
        "property" in ast.unparse(decorator) for decorator in node.decorator_list
    )


def names(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    """Yield the names that a file defines: functions, classes, arguments, variables and attributes."""
    for node in nodes:
        if isinstance(node, Definition):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def faults(text: str) -> list[str]:
    """Return a sentence for each old pattern in a Python file."""
    nodes = nodes_of(text)
    described = list(docstrings(nodes))
    found = []
    for node, docstring in described:
        first = str(docstring.value).strip().split("\n")[0]
        acts = is_function(node) or isinstance(node, ast.Module)
        if NO_SENTENCE.match(first) or (acts and NO_VERB.match(first)):
            found.append(f"line {docstring.lineno}: the docstring is no sentence that says what is done: {first}")
        if unplain := UNPLAIN.search(" ".join(str(docstring.value).split())):
            found.append(f"line {docstring.lineno}: the docstring has unplain words: {unplain[0]}")
        if joined := JOINED.search(str(docstring.value)):
            found.append(f"line {docstring.lineno}: the docstring has joined lines: {joined[0]}")
    texts = {docstring for _, docstring in described}
    for node in nodes:
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or node in texts:
            continue
        if REQUIRED.search(node.value):
            found.append(f"line {node.lineno}: the message does not say what happened: {node.value}")
        if unplain := UNPLAIN.search(node.value):
            found.append(f"line {node.lineno}: the message has unplain words: {unplain[0]}")
    for line, name in names(nodes):
        if name.strip("_").lower() in PRIVATE_WORDS:
            found.append(f"line {line}: the name is a private word: {name}")
    return found


def template(node: ast.AST) -> str:
    """Return the text of a constant, or of an f-string with "{}" for each value; "" for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def sentences(text: str) -> list[str]:
    """Return the sentences in a Python file, without docstrings, lines of the log, descriptions of fields, and wrong
    arguments."""
    nodes = nodes_of(text)
    skipped = {id(docstring) for _, docstring in docstrings(nodes)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in ast.walk(node) if part is not node}
        elif isinstance(node, ast.Call):
            skipped |= {id(keyword.value) for keyword in node.keywords if keyword.arg == "description"}
            if isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "logger":
                skipped |= {id(argument) for argument in node.args}
    found = [template(node) for node in nodes if id(node) not in skipped]
    return [line for line in found if line.count(" ") > 1 and END.search(line) and not line.startswith("expected ")]


def misfilled(text: str, module: str, known: Mapping[str, str]) -> list[str]:
    """Return where a room's sentence is filled, or handed over, without exactly the values that it names."""
    if module not in text:
        return []
    nodes = nodes_of(text)
    filled = {
        id(node.func.value): {keyword.arg for keyword in node.keywords}
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format"
    }
    plain = {id(value) for node in nodes if isinstance(node, ast.Call) for value in node.args}
    uses = [
        node
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module
    ]
    return [
        f"line {node.lineno}: {node.attr}"
        for node in uses
        if node.attr in known
        and id(node) in plain | filled.keys()
        and filled.get(id(node), set()) != {name for _, name, *_ in string.Formatter().parse(known[node.attr]) if name}
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise E('fewer than 50 waiting requests are required, got 50')", "does not say what happened"),
        ("raise E(f'a folder is required, got {path!r}; correct it')", "does not say what happened"),
        ('LIMIT = 5\n"""So many, and no more."""', "no sentence"),
        ('class Uploads:\n    """Of the clients of one name."""', "no sentence"),
        ('def answer():\n    """What the PACS said."""', "no sentence"),
        ('def answer():\n    """The answer of the PACS."""', "no sentence"),
        ('"""The answers of the PACS."""', "no sentence"),
        ('def find():\n    """Return the level; None where it has none."""', "unplain"),
        ('WAIT = 3\n"""Maximum time to wait, seconds."""', "unplain"),
        ('def cut():\n    """Cut it.\n\n    Args:\n        fine: Step 1. look: A fast one.\n    """', "joined"),
        ('def find():\n    """Find it.\n\n    Returns: The level.\n    """', "joined"),
        ("raise E('This label neither trains nor judges. Submit it again.')", "unplain"),
        ("raise E('The plan is made anew. Wait.')", "unplain"),
        ("raise E('An image that is no volume cannot be shown. Send a series.')", "unplain"),
        ("def keep(told): ...", "private word"),
        ("_shown = 1", "private word"),
    ],
)
def test_old_patterns_are_found(source: str, words: str) -> None:
    (fault,) = faults(source)
    assert words in fault


@pytest.mark.parametrize(
    "source",
    [
        "raise ValueError(f'expected a 3D volume, got shape {shape}')",
        "raise E(f'The server is busy ({count} requests waiting). Try again later.')",
        'class Uploads:\n    """The uploads of one client."""',
        'class Grid:\n    @property\n    def spacing(self):\n        """The voxel size, mm."""',
        'def answer():\n    """Return the answer of the PACS."""',
    ],
)
def test_plain_words_pass(source: str) -> None:
    assert faults(source) == []


def test_no_file_of_the_app_the_tools_or_the_tests_support_has_an_old_pattern() -> None:
    found = {str(file.relative_to(ROOT)): faults(file.read_text(encoding="utf-8")) for file in [*FILES, *SUPPORT]}
    assert {file: old for file, old in found.items() if old} == {}


def test_sentences_outside_the_file_of_the_messages_are_found() -> None:
    assert sentences("raise E(f'There is no scan {name!r}. Choose one.')") == ["There is no scan {}. Choose one."]
    assert sentences("logger.error('It failed now.')\nraise ValueError(f'expected a word, got {x}.')") == []


def test_a_sentence_without_its_values_is_found() -> None:
    known = {"NO_SCAN": "There is no scan {name!r}. Choose one."}
    for use in ("f(m.NO_SCAN)", "m.NO_SCAN.format(names=1)", "m.NO_SCAN.format(name=1, date=2)"):
        assert misfilled(use, "m", known) == ["line 1: NO_SCAN"], use
    assert misfilled("m.NO_SCAN.format(name=1)", "m", known) == []


@pytest.mark.parametrize("path", MESSAGES, ids=lambda f: f.stem)
def test_the_sentences_of_a_room_are_in_one_file_and_get_their_values(path: Path) -> None:
    """A sentence elsewhere would be missed by a translator, and a missing value shows only when somebody reads it."""
    known = {
        line.target.id: template(line.value) if line.value else ""
        for line in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    texts = {f.name: f.read_text(encoding="utf-8") for f in path.parent.rglob("*.py") if f not in MESSAGES}
    found = {name: (sentences(text), misfilled(text, path.stem, known)) for name, text in texts.items()}
    assert {name: faulty for name, faulty in found.items() if any(faulty)} == {}
    used = {name for text in texts.values() for name in re.findall(rf"\b{path.stem}\.([A-Z0-9_]+)", text)}
    assert {name for name, text in known.items() if text and not name.startswith("_")} - used == set()


def test_a_room_without_a_file_of_its_sentences_has_few() -> None:
    folders = {file.parent for file in FILES} - {LIB, LIB.parent}
    alone = [folder for folder in folders if not any(path.parent in (folder, folder.parent) for path in MESSAGES)]
    counts = {
        folder.name: sum(len(sentences(f.read_text(encoding="utf-8"))) for f in folder.glob("*.py")) for folder in alone
    }
    assert {name: count for name, count in counts.items() if count > FEW} == {}


def test_a_test_module_begins_with_what_it_tests() -> None:
    texts = {file.stem: file.read_text(encoding="utf-8") for file in TESTS}
    begins = {name: text[3:].partition('"""')[0] if text.startswith('"""') else "" for name, text in texts.items()}
    assert {
        name for name, text in begins.items() if not text or NO_SENTENCE.match(text) or NO_VERB.match(text)
    } == set()


def test_names_in_tests_are_not_private_words() -> None:
    texts = {file.name: file.read_text(encoding="utf-8") for file in TESTS}
    found = {
        file: {name for _, name in names(nodes_of(text)) if name.strip("_").lower() in PRIVATE_WORDS}
        for file, text in texts.items()
        if MAY_DEFINE.search(text)
    }
    assert {file: private for file, private in found.items() if private} == {}


def test_a_constant_is_set_once() -> None:
    """After a rewording two constants of a file had one name, and the first had the value of the second."""
    found = {
        str(file.relative_to(ROOT)): [name for name, times in Counter(CONSTANT.findall(text)).items() if times > 1]
        for file in [*FILES, *SUPPORT, *TESTS]
        for text in [file.read_text(encoding="utf-8")]
    }
    assert {file: twice for file, twice in found.items() if twice} == {}


def test_names_of_files_are_not_private_words() -> None:
    assert {file.name for file in FILES if file.stem in PRIVATE_WORDS} == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_page_or_script_has_no_old_pattern(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [found[0] for found in UNPLAIN.finditer(" ".join(text.split()))] == []
    assert path.suffix != ".js" or {name for name in SCRIPT_NAME.findall(text) if name in PRIVATE_WORDS} == set()
