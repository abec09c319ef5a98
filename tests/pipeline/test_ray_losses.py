"""Ray's exceptions, put as whose fault a loss is. That Ray raises them so shows in tests/integration/test_ray_*.py."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)

from data_engine import __version__
from data_engine.errors import DeviceLost, ModelFailure
from data_engine.pipeline.policy import Loss
from data_engine.pipeline.ray_losses import loss_of
from data_engine.pipeline.ray_worker import Unfit


def raised(cause: Exception) -> Exception:
    """By our own code in a worker."""
    return RayTaskError("run", "a traceback", cause).as_instanceof_cause()


def never_began() -> ActorDiedError:
    error = ActorDiedError()
    error._actor_init_failed = True
    error.error_msg = (
        "The actor died because of an error\n  File ...\nModuleNotFoundError: No module named 'data_engine'\n"
    )
    return error


@pytest.mark.parametrize(
    ("error", "working", "loss", "reason"),
    [
        (raised(Unfit("no GPU is visible")), False, Loss.UNFIT, "no GPU is visible"),
        (raised(ModelFailure("all failed")), True, Loss.UNFIT, "ModelFailure: all failed"),
        (raised(KeyError("weights")), False, Loss.UNFIT, "KeyError: 'weights'"),
        (raised(DeviceLost("cuda:0 was lost")), True, Loss.DIED, "DeviceLost: cuda:0 was lost"),
        (OutOfMemoryError("killed"), True, Loss.OUT_OF_MEMORY, "the node ran out of memory and the worker was killed"),
        (NodeDiedError("gone"), True, Loss.PREEMPTED, "its node is gone"),
        (ActorUnavailableError("no answer", None), True, Loss.PREEMPTED, "its node cannot be reached"),
        (WorkerCrashedError(), True, Loss.DIED, str(WorkerCrashedError())[:300]),
    ],
)
def test_whose_fault_it_is(error: Exception, working: bool, loss: Loss, reason: str) -> None:
    assert loss_of(error, working, node_lives=lambda: True) == (loss, reason)


def test_a_worker_that_could_not_be_made_says_what_is_missing_and_what_to_do() -> None:
    loss, reason = loss_of(never_began(), working=False, node_lives=lambda: True)
    assert loss is Loss.UNFIT
    assert "(ModuleNotFoundError: No module named 'data_engine')" in reason
    assert f"install data-engine[ray] {__version__} there" in reason


def test_whatever_died_on_a_node_that_is_gone_went_with_it() -> None:
    assert loss_of(ActorDiedError(), True, node_lives=lambda: False) == (Loss.PREEMPTED, "its node is gone")


def test_no_secret_of_a_url_is_told() -> None:
    error = raised(Unfit("https://host/model?X-Amz-Signature=abcdef0123 cannot be read"))
    assert "abcdef0123" not in loss_of(error, False, lambda: True)[1]
