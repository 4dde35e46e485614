"""The real flow and dispatcher over fakes of their ports."""

from __future__ import annotations

from serve_app.capabilities import CAPABILITIES
from serve_app.core.capability import Capabilities
from serve_app.core.limits import Limits
from serve_app.core.measurements import Measurements
from serve_app.core.settings import RouterSettings
from serve_app.flow.flow import SegmentationFlow
from serve_app.images.store import ImageStore
from serve_app.routing.dispatcher import Dispatcher
from serve_app.routing.load_tracker import Capacity

from .ports import FakePredictor, FakeProposer, FakeScorer

VARIANTS = ("fast", "accurate")


class FakeGraph:
    """Variants *fast* and *accurate* in one process, without models.

    Attributes:
        flow: as an ingress replica has it.
    """

    def __init__(
        self,
        scorer: FakeScorer | None = None,
        limits: Limits | None = None,
        timeout_s: float | None = None,
        router: RouterSettings | None = None,
        measurements: Measurements | None = None,
        *,
        capabilities: Capabilities = CAPABILITIES,
        proposer: FakeProposer | None = None,
        remembers: bool = True,
        image_bytes: int = 2**20,
    ) -> None:
        limits = limits or Limits()
        predictors = {name: FakePredictor(remembers=remembers) for name in VARIANTS}
        self.fast, self.accurate = predictors.values()
        self.proposer, self.scorer = proposer or FakeProposer(), scorer
        self.dispatcher = Dispatcher(
            router or RouterSettings(),
            {name: Capacity() for name in VARIANTS},
            measurements or Measurements(),
            {name: predictor.scale_from_zero for name, predictor in predictors.items()},
        )
        self.flow = SegmentationFlow(
            capabilities=capabilities,
            images=ImageStore(limits, image_bytes),
            variants={name: {"model": f"{name}_model"} for name in VARIANTS},
            predictors=predictors,
            proposer=self.proposer,
            scorer=scorer,
            dispatcher=self.dispatcher,
            limits=limits,
            timeout_s=timeout_s,
        )
