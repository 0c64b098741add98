"""What the Brains of all recipes have in common.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import speechbrain as sb
from speechbrain.utils.checkpoints import average_checkpoints
from speechbrain.utils.distributed import run_on_main


class RecipeBrain(sb.Brain):
    """A Brain that logs, keeps its best checkpoints and averages them.

    Arguments
    ---------
    lr_annealing : callable, optional
        As ``speechbrain.nnet.schedulers.NoamScheduler``; called every update.
    train_logger : TrainLogger, optional
        As ``speechbrain.utils.train_logger.FileTrainLogger``.
    select_by : str
        The figure on dev that chooses checkpoints: the lower the better, unless
        it is one of ``rising``.
    average : int
        How many of the best checkpoints are kept and averaged.
    **kwargs
        Those of ``speechbrain.Brain``.
    """

    averaged: tuple[str, ...] = ()  # names of modules that are averaged
    rising: frozenset[str] = frozenset()  # figures, the higher the better

    def __init__(
        self,
        lr_annealing=None,
        train_logger=None,
        select_by: str = "loss",
        average: int = 1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.lr_annealing = lr_annealing
        self.train_logger = train_logger
        self.select_by = select_by
        self.average = average
        # Kept as they are now, before DDP wraps them.
        self.unwrapped = dict(self.modules.items())

    def make_dataloader(self, dataset, stage, **loader_kwargs):
        """As SpeechBrain's, with other batches in every epoch.

        SpeechBrain tells the epoch to samplers of distributed runs only: in one
        process, a batch sampler would give the same batches again and again,
        and others to a run that goes on from a checkpoint.
        """
        loader = super().make_dataloader(dataset, stage, **loader_kwargs)
        if stage == sb.Stage.TRAIN and not self.distributed_launch:
            for key in ("sampler", "batch_sampler"):
                if key in loader_kwargs:
                    self.train_sampler = loader_kwargs[key]
        return loader

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of each optimiser, by its key in recipes."""
        return {"lr": self.optimizer.param_groups[0]["lr"]}

    def on_fit_batch_start(self, batch, should_step):
        """Set the learning rate, also that of the first step."""
        if should_step and self.lr_annealing is not None:
            self.lr_annealing(self.optimizer)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the figures of an epoch, and keep the best checkpoints."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        figures = {"loss": stage_loss, **self.figures(stage_loss)}
        if stage == sb.Stage.TEST:
            self.log({"stage": "test"}, test_stats=figures)
            return
        self.log(
            {"epoch": epoch, **self.rates},
            train_stats={"loss": self.train_loss},
            valid_stats=figures,
        )
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, **figures},
                **{f"{key}s": [name] for key, name in self.best.items()},
                num_to_keep=self.average,
            )

    @property
    def best(self) -> dict[str, str]:
        """What finds the best checkpoint: ``min_key`` or ``max_key``."""
        rises = self.select_by in self.rising
        return {"max_key" if rises else "min_key": self.select_by}

    def figures(self, loss: float) -> dict[str, float]:
        """What a subclass tells of a stage beside its loss.

        Arguments
        ---------
        loss : float
            Mean of the stage.

        Returns
        -------
        dict
            Name to number.
        """
        return {}

    def check_loss_isfinite(self, loss):
        """Stop, and say what to do, if the loss stays NaN or infinite."""
        try:
            super().check_loss_isfinite(loss)
        except ValueError as error:
            rates = " and ".join(
                f"{key} (now {rate:.2g})" for key, rate in self.rates.items()
            )
            raise ValueError(
                f"The loss is {loss.item()} at optimiser step "
                f"{self.optimizer_step}, and was not finite "
                f"{self.nonfinite_count} times. Lower {rates}, raise "
                "warmup_steps, or set --max_grad_norm lower; under "
                "--precision=fp16 try bf16 or fp32. The last checkpoint is "
                "kept: the same command goes on from it."
            ) from error

    def log(self, meta: dict, **stats: dict) -> None:
        """Write figures to the train log.

        Arguments
        ---------
        meta : dict
            E.g. the epoch.
        **stats : dict
            ``train_stats``, ``valid_stats`` or ``test_stats``.
        """
        if self.train_logger is not None:
            run_on_main(self.train_logger.log_stats, [meta], stats)

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Load the average of the best checkpoints."""
        super().on_evaluate_start(max_key=max_key, min_key=min_key)
        if self.checkpointer is None:
            return
        best = self.checkpointer.find_checkpoints(
            **self.best, max_num_checkpoints=self.average
        )
        if best:
            for name in self.averaged:
                weights = average_checkpoints(best, name)
                self.unwrapped[name].load_state_dict(weights)
        elif not self.debug:  # which keeps its checkpoints to itself
            raise FileNotFoundError(
                f"No checkpoint in {self.checkpointer.checkpoints_dir} to "
                "evaluate: train first, or give the output_folder of a run."
            )
