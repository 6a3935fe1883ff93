"""Runs: each is one folder, trained once, whoever asks for it and however often it is killed.

The folder `runs/<corpus>-<config hash>/` holds config.json, history.csv, predictions.parquet, adapter.safetensors,
environment.json and, written last, metrics.json: the mark of a finished run. Worker processes claim runs by a file lock,
so any number of notebooks may ask for the same run at the same time; a killed worker's lock falls with it, and the next
call goes on from the last epoch's checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from cmpta_lib.config import DataConfig, LLMConfig, RunConfig, from_json, to_json
from cmpta_lib.data.corpus import Corpus, load_corpus
from cmpta_lib.runs import provenance as records

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
DONE = "metrics.json"
PARENT = "CMPTA_PARENT"  # environment variable of workers: the process that waits for them


@dataclass(frozen=True)
class Run:
    """One finished or unfinished run: its config and its folder."""

    config: RunConfig
    folder: Path

    @property
    def done(self) -> bool:
        return (self.folder / DONE).exists()

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return json.loads((self.folder / DONE).read_text())

    @cached_property
    def environment(self) -> dict[str, Any]:
        return json.loads((self.folder / "environment.json").read_text())

    def predictions(self, split: str = "test") -> pd.DataFrame:
        """Columns id, label, reply, prediction (NaN = unparsable), in the split's order."""
        import pandas as pd

        table = pd.read_parquet(self.folder / "predictions.parquet")
        return table[table["split"] == split].drop(columns="split").reset_index(drop=True)

    @property
    def history(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.folder / "history.csv")


def runs_folder() -> Path:
    """Where runs and caches live: `runs/` of this checkout, or what the environment variable CMPTA_RUNS names."""
    return Path(os.environ.get("CMPTA_RUNS") or ROOT / "runs").resolve()


def ensure(runs: Sequence[Run], root: Path, jobs: int | None = None) -> None:
    """Finish every run: worker processes claim them one by one, and a bar counts epochs over all of them.

    Raises:
        RuntimeError: a worker failed; shows the end of its log and names the run. Finished runs stay finished.
    """
    from tqdm.auto import tqdm

    for run in runs:
        if run.done:
            _sweep(run.folder)
    pending = {run.folder: run for run in runs if not run.done}
    if not pending:
        return
    for folder, run in pending.items():
        folder.mkdir(parents=True, exist_ok=True)
        records.write_text(folder / "config.json", to_json(run.config))
    gpu = any(Path("/proc/driver/nvidia/gpus").glob("*"))  # without importing torch
    count = min(len(pending), jobs or (1 if gpu else os.cpu_count() or 1))
    log = root / f"workers-{os.getpid()}.log"
    threads = next(iter(pending.values())).config.training.num_threads
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), PARENT: str(os.getpid())}
    command = [sys.executable, "-m", "cmpta_lib.runs.worker", str(root), *map(str, pending)]
    with open(log, "w") as stream:
        workers = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream) for _ in range(count)
        ]
    totals = {
        folder: run.config.training.epochs if run.config.adapter.fusion != "none" else 1
        for folder, run in pending.items()
    }
    try:
        with tqdm(total=sum(totals.values()), desc=f"{len(pending)} runs", unit="epoch") as bar:
            while any(worker.poll() is None for worker in workers):
                if any(worker.returncode for worker in workers):
                    break
                if news := sum(_epochs(folder, total) for folder, total in totals.items()) - bar.n:
                    bar.update(news)
                time.sleep(0.5)
            bar.update(sum(_epochs(folder, total) for folder, total in totals.items()) - bar.n)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    failed = [run.folder.name for run in pending.values() if not run.done]
    if failed:
        codes = sorted({worker.returncode for worker in workers} - {0})
        raise RuntimeError(
            f"{len(failed)} of {len(pending)} runs did not finish, among them {', '.join(failed[:3])}; workers ended "
            f"with exit codes {codes} (-9: killed, perhaps for memory). Call again to go on. "
            f"Log {log} ends with:\n{log.read_text()[-3000:]}"
        )
    log.unlink()


def _epochs(folder: Path, total: int) -> int:
    if (folder / DONE).exists():
        return total
    history = folder / "history.csv"
    return max(0, history.read_text().count("\n") - 1) if history.exists() else 0


def work(root: Path, folders: Sequence[Path]) -> None:
    """A worker: claim and finish runs until none is left; runs that another worker holds are waited for."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # one run over several processes: the first of them holds the lock
        from torch import distributed

        distributed.init_process_group()
        for folder in folders:
            with FileLock(folder / "lock") if distributed.get_rank() == 0 else nullcontext():
                execute(root, folder)
            distributed.barrier()
        distributed.destroy_process_group()
        return
    for patience in (0, -1):  # first what is free, then wait for the rest
        for folder in folders:
            try:
                with FileLock(folder / "lock", timeout=patience):
                    if not (folder / DONE).exists():
                        execute(root, folder)
                    _sweep(folder)
            except Timeout:
                continue


def execute(root: Path, folder: Path) -> None:
    """Train, evaluate and record the run whose config lies in `folder`; call with its lock held."""
    import pandas as pd
    import torch

    from cmpta_lib.training import loop as training

    config = from_json((folder / "config.json").read_text())
    started = time.perf_counter()
    torch.set_num_threads(config.training.num_threads)
    corpus = find_corpus(root / "cache" / "data", config.data)
    asked_by = os.environ.get(PARENT)

    def on_epoch(state: training.State) -> None:
        records.write_text(folder / "history.csv", pd.DataFrame(state.history).to_csv(index=False))
        if asked_by and os.getppid() != int(asked_by):  # it was killed: leave the machine, the checkpoint is written
            raise SystemExit("the process that asked for this run is gone")

    try:
        llm = load_llm(root / "cache" / "llm", config.llm)
        model, state = training.train(config, corpus, llm, folder, on_epoch)
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"the GPU's memory is full ({str(error).splitlines()[0]}). Close what else runs on it or pass fewer --jobs; "
            f"finished epochs are kept"
        ) from error
    if int(os.environ.get("RANK", 0)):
        return  # the first process evaluates and writes
    model.counts.clear()  # from here each clip is met once; training and its validations meet them every epoch
    tables = {split: training.evaluate(model, corpus.splits[split]) for split in ("valid", "test")}
    limit, texts = config.prompt.max_text_tokens, corpus.splits["train"].table["text"]
    model.counts["texts_cut"] += sum(len(llm.token_ids(text)) > limit for text in texts)
    records.write_parquet(folder / "predictions.parquet", pd.concat([t.assign(split=s) for s, t in tables.items()]))
    training.write_tensors(folder / "adapter.safetensors", model.adapter.state_dict())
    history = pd.DataFrame(state.history, columns=None if state.history else ["epoch", "learning_rate", "train_loss"])
    records.write_text(folder / "history.csv", history.to_csv(index=False))
    record = records.environment(
        llm_fingerprint=llm.fingerprint, data_sources=dict(corpus.sources), repairs=dict(corpus.repairs)
    )
    record |= {"train_seconds": round(state.seconds, 2), "seconds": round(time.perf_counter() - started, 2)}
    records.write_text(folder / "environment.json", json.dumps(record, indent=1))
    result = {split: training.score_of(table, corpus) for split, table in tables.items()}
    result |= {"best_epoch": state.best_epoch, "oddities": dict(model.counts)}
    result |= {"trainable_parameters": sum(p.numel() for p in model.parameters()), "llm_parameters": llm.num_parameters}
    records.write_text(folder / DONE, json.dumps(result, indent=1))


def _sweep(folder: Path) -> None:
    """Remove what killed workers left in a finished run's folder."""
    for leftover in {*folder.glob("*.partial"), *folder.glob("checkpoint.*")}:
        leftover.unlink(missing_ok=True)


def find_corpus(cache: Path, wanted: DataConfig) -> Corpus:
    """The stored corpus with this content, wherever in the cache it lies."""
    for meta in sorted(cache.glob("[!.]*/meta.json")):
        if wanted.fingerprint in meta.read_text(encoding="utf-8", errors="replace"):  # others may be damaged
            return load_corpus(meta.parent)
    raise FileNotFoundError(
        f"no corpus '{wanted.name}' with fingerprint {wanted.fingerprint} in {cache}: open it through Study.corpus"
    )


_LLMS: dict[LLMConfig, Any] = {}


def load_llm(cache: Path, config: LLMConfig) -> Any:
    """The frozen LLM a config names, on the GPU where there is one; the last one asked for is kept."""
    import torch

    from cmpta_lib.llm import frozen as backbone

    if config not in _LLMS:
        _LLMS.clear()
        _LLMS[config] = backbone.load(config, cache, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return _LLMS[config]


def load_model(run: Run, root: Path) -> Any:
    """The trained model of a finished run, in eval mode."""
    from safetensors.torch import load_file

    from cmpta_lib.training import loop as training

    corpus = find_corpus(root / "cache" / "data", run.config.data)
    model = training.build(run.config, corpus, load_llm(root / "cache" / "llm", run.config.llm))
    model.adapter.load_state_dict(load_file(run.folder / "adapter.safetensors", device=str(model.llm.device)))
    return model.eval()


if __name__ == "__main__":  # a worker; `torchrun -m cmpta_lib.runs.worker <runs> <folder>` trains one run on several processes
    work(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
