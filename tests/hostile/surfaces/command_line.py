"""Arguments: secrets by any spelling, nesting, numbers and lengths without bound, names of nothing."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.case import EXPORT, HARMLESS, PREPARE, REFUSED, SHOW, TRAIN, Case, Place

SECRET = "a-secret-that-nobody-may-see"
LONG = 120_000  # Linux takes no longer argument

INTERPOLATIONS = (
    r"tracking.project=${oc.env:HOSTILE_SECRET}",
    r"tracking.project=$\{oc.env:HOSTILE_SECRET\}",
    r"tracking.project=\${oc.env:HOSTILE_SECRET}",
    r"tracking.project=\\$\{oc.env\:HOSTILE_SECRET\}",
    r"tracking.tags=[$\{oc.env\:HOSTILE_SECRET\}]",
    r"tracking.tags=[a,b,$\{oc.env\:HOSTILE_SECRET\}]",
    r"tracking.tags=[[$\{oc.env\:HOSTILE_SECRET\}]]",
    r"++tracking.run_name=$\{oc.env\:HOSTILE_SECRET\}",
    r"+tracking.run_name=$\{oc.env\:HOSTILE_SECRET\}",
    r"tracking.project=$\{oc.decode\:$\{oc.env\:HOSTILE_SECRET\}\}",
    r"tracking.project=$\{$\{tracking.run_name\}\:HOSTILE_SECRET\}",
    r"++tracking={project:$\{oc.env\:HOSTILE_SECRET\}}",
    r"++tracking={$\{oc.env\:HOSTILE_SECRET\}:x}",
    r"modules=[$\{oc.env\:HOSTILE_SECRET\}]",
    r"model=$\{oc.env\:HOSTILE_SECRET\}",
    r"experiment=$\{oc.env\:HOSTILE_SECRET\}",
    r"data.path=$\{oc.env\:HOSTILE_SECRET\}",
    r"train.resume=$\{oc.env\:HOSTILE_SECRET\}",
)

REFUSED_ARGUMENTS = (
    *("a=1", "~", "~a.b", "=", "a=", "+", "++", ".=1", "a..b=1", "train=1", "train=null", "model={}", "model=[]"),
    *("train.steps=1e3", "train.steps=true", "train.steps=null", "train.steps='1'", "train.steps=-1", "train.steps=0"),
    *("train.steps=1,2", "train.steps=range(1,5)", "train.steps=choice(1,2)", "train.steps=glob(*)", "train.steps=[1]"),
    *("train.steps=99999999999999999999", "train.steps=" + "9" * 5000, "train.seed=-99999999999999999999"),
    *("optimizer.lr=inf", "optimizer.lr=nan", "optimizer.lr=1e999", "optimizer.lr=-1", "optimizer.betas=[1,2,3]"),
    *(
        "optimizer.betas=x",
        "modules=x",
        "modules=[a.b.c]",
        "modules=['../x']",
        "modules=['']",
        "seed@x=1",
        "-x",
        "--x=y",
    ),
    *(
        "experiment=../../x",
        "experiment=/etc/passwd",
        "model=../x",
        "hydra.run.dir=x",
        "+hydra.x=1",
        "hydra/launcher=x",
    ),
    *("--config-dir=/nowhere", "--config-dir=/dev/null", "--config-dir=/etc/passwd", "--config-path=/", "--multirun"),
    *(
        "model._target_=os.system",
        "+_target_=os.system",
        "data.path=pipe:id",
        "data.path=/dev/zero",
        "é=1",
        "a='",
        "a=\\",
    ),
)


def cases() -> Iterator[Case]:
    for text in INTERPOLATIONS:
        yield _train(text, [text], environment={"HOSTILE_SECRET": SECRET})
    for text in REFUSED_ARGUMENTS:
        yield _train(text[:60], [text])
    for name, text in _structures():
        yield _train(name, [text], said="tracking.tags")
    yield from _long_lists()
    yield from _other_commands()


def _train(name: str, arguments: list[str], said: str = "error:", **more: object) -> Case:
    def arrange(place: Place) -> list[str]:
        return [*place.train(), *arguments]

    return Case("command line", ascii(name), TRAIN, arrange, said, **more)  # type: ignore[arg-type]


def _structures() -> Iterator[tuple[str, str]]:
    for depth in (21, 300, 5000, 50_000):
        yield f"lists nested {depth} deep", "tracking.tags=" + "[" * depth + "]" * depth
        yield f"open lists nested {depth} deep", "tracking.tags=" + "[" * depth
    for depth in (100, 20_000):
        yield f"dictionaries nested {depth} deep", "tracking.tags=" + "{a:" * depth + "1" + "}" * depth
        yield f"calls nested {depth} deep", "tracking.tags=" + "f(" * depth + ")" * depth
    yield "many lists", "tracking.tags=[" + "[x]," * (LONG // 4) + "[x]]"
    yield "an integer in a list", "tracking.tags=[1," + "9" * 5000 + "]"
    yield "quotes", "tracking.tags=" + "'" * LONG
    yield "commas", "tracking.tags=" + ",".join("a" * (LONG // 2))
    yield "one text", "tracking.tags=" + "x" * LONG


def _long_lists() -> Iterator[Case]:
    for item in ("/nowhere/file{}.txt", "'a b{}'", "é{}", "{}.5"):
        text = f"corpus.inputs=[{','.join(item.format(n) for n in range(LONG // (len(item) + 5)))}]"

        def arrange(place: Place, text: str = text) -> list[str]:
            return [*place.prepare(), text]

        yield Case("command line", f"a long list of {item}", PREPARE, arrange, "corpus.inputs", seconds=40)


def _other_commands() -> Iterator[Case]:
    for module, arguments in (
        (PREPARE, ["output=/dev/null"]),
        (PREPARE, ["output=memory://x"]),
        (PREPARE, ["valid_fraction=2"]),
        (PREPARE, ["num_workers=-1"]),
        (PREPARE, [r"output=$\{oc.env\:HOME\}"]),
        (EXPORT, ["checkpoint=/dev/zero", "output=x"]),
        (EXPORT, ["checkpoint=/nowhere", "output=x"]),
        (EXPORT, ["checkpoint=" + "x" * 5000, "output=x"]),
        (EXPORT, []),
        (SHOW, ["run_dir=/dev/zero"]),
        (SHOW, ["run_dir=/nowhere"]),
        (SHOW, ["run_dir=" + "x" * 5000]),
        (SHOW, []),
    ):

        def arrange(place: Place, module: str = module, arguments: list[str] = arguments) -> list[str]:
            (place.here / "in").mkdir()
            (place.here / "in" / "a.txt").write_text("text")
            return [*(place.prepare() if module == PREPARE else []), *arguments]

        name = f"{module} {' '.join(arguments)[:40]}"
        yield Case("command line", name, module, arrange, "error:", codes=REFUSED, real=len(arguments) == 1)
    for text in ("modules=[os]", "tracking.project=a$", "train.steps=int(3)"):
        yield _train(text, [text], codes=HARMLESS)
