"""What a run of the trainer leaves in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from examples import pictures
from examples.data import Scene
from examples.experiments import Result

if TYPE_CHECKING:
    from examples.train import Trainer


@dataclass
class Point:
    """Of a run's record; the loss is the mean since the point before."""

    step: int
    loss: float
    result: Result
    milliseconds: float


class Record:
    """What a run leaves in its folder: the CSV, TensorBoard's files, frames for the animation."""

    def __init__(
        self, folder: Path, trainer: Trainer, held_out: Scene, tensorboard: bool, drawn: bool
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.trainer = folder, trainer
        self.drawn = drawn and pictures.can_draw(trainer.network)
        self.shown, self.frames = held_out[:8], []
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder)
        self.csv = folder / "run.csv"
        if not trainer.done:
            self.csv.write_text("step,loss,error,iou,milliseconds\n")

    def __call__(self, point: Point) -> None:
        iou = "" if point.result.iou is None else f"{point.result.iou:.4f}"
        with self.csv.open("a") as file:
            error, milliseconds = point.result.error, point.milliseconds
            file.write(f"{point.step},{point.loss:.6f},{error:.3f},{iou},{milliseconds:.3f}\n")
        self.trainer.save(self.folder / "checkpoint.pt")
        if self.writer:
            self.writer.add_scalar("loss", point.loss, point.step)
            self.writer.add_scalar("held-out error, %", point.result.error, point.step)
        if self.drawn:
            figure = pictures.show(self.trainer.network, self.shown, f"step {point.step}")
            self.frames.append(pictures.pixels(figure))
            if self.writer:
                self.writer.add_image("transformer", self.frames[-1], point.step, dataformats="HWC")

    def close(self, scene: Scene) -> list[Path]:
        """Draw; the files that were written."""
        written = [self.csv, self.folder / "checkpoint.pt"]
        if self.drawn:
            written.append(self.folder / "picture.png")
            pictures.show(self.trainer.network, scene[:24]).savefig(written[-1], dpi=100)
            if len(self.frames) > 1:
                written.append(self.folder / "training.gif")
                pictures.animate(written[-1], self.frames)
        if self.writer:
            self.writer.close()
        return written
