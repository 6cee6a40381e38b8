"""Pack: documents of four modalities as fixed-length token sequences."""

from flytekit import Resources

from accordion.config.data import PackConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage("pack", "accordion.data.pack:pack", PackConfig, kind="shards", files=("meta.json",))


@STAGE.task(requests=Resources(cpu="2", mem="4Gi"))
def pack(run: Run, config: str, corpus: Artifact, text: Artifact, vision: Artifact, audio: Artifact) -> Artifact:
    """Documents of four modalities as fixed-length token sequences."""
    return STAGE.run(run, config, corpus=corpus, text=text, vision=vision, audio=audio)
