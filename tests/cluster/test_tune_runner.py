"""What Ray shows of a sweep."""

from ray import cloudpickle, tune

from rayunlearn.cluster.trainable import TrialActor
from rayunlearn.cluster.tune_runner import TRIAL_ACTOR, name_plainly


def test_the_class_of_a_trial_has_a_plain_name_and_travels_by_its_content() -> None:
    """Tune wraps the class in one of a function of its own, whose name Ray's dashboard shows."""
    trainable = tune.with_resources(TrialActor, {"cpu": 1.0})
    assert "<locals>" in trainable.__qualname__
    name_plainly(trainable)
    sent = cloudpickle.loads(cloudpickle.dumps(trainable))
    assert sent.__name__ == sent.__qualname__ == TRIAL_ACTOR == "UnlearningTrial"
    assert issubclass(sent, TrialActor) and sent.default_resource_request({}) is not None
