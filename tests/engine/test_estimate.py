"""The seed's wait estimate, number by number."""

from engine.estimate import BATCHES_KEPT, MeanRateEstimator


def test_without_any_release_the_rate_is_fifty_a_minute_and_nothing_is_certain() -> None:
    estimate = MeanRateEstimator().estimate(101)
    assert estimate.seconds == int(100 / 50 * 1.2 * 60)
    assert estimate.confidence == 0.0


def test_the_rate_is_the_mean_of_the_recent_rates_with_a_buffer_of_a_fifth() -> None:
    estimator = MeanRateEstimator()
    estimator.observe(100, 60_000)
    estimator.observe(300, 60_000)
    assert estimator.rate_per_minute() == 200
    assert estimator.estimate(1_001).seconds == int(1000 / 200 * 1.2 * 60)
    assert estimator.estimate(1_001).low_seconds == 300
    assert estimator.estimate(1_001).high_seconds == int(1000 / 100 * 1.2 * 60)
    assert estimator.estimate(1_001).confidence == 0.2


def test_confidence_is_full_after_ten_batches_and_eleven_are_averaged() -> None:
    estimator = MeanRateEstimator()
    for count in [10_000] * 5 + [100] * 11:
        estimator.observe(count, 60_000)
    assert estimator.rate_per_minute() == 100
    assert estimator.estimate(2).confidence == 1.0
    assert len(estimator.dump()) == min(16, BATCHES_KEPT)


def test_the_first_in_line_waits_for_nothing() -> None:
    assert MeanRateEstimator().estimate(1).seconds == 0


def test_slices_of_one_batch_count_as_one_batch() -> None:
    whole, sliced = MeanRateEstimator(), MeanRateEstimator()
    whole.observe(2_500, 10_000)
    for count, elapsed_ms in ((1_000, 10_000), (1_000, 0), (500, 0)):
        sliced.observe(count, elapsed_ms)
    assert sliced.dump() == whole.dump()


def test_a_slice_without_a_batch_before_it_changes_nothing() -> None:
    estimator = MeanRateEstimator()
    estimator.observe(5, 0)
    assert estimator.dump() == []


def test_a_dumped_state_goes_on_where_it_was() -> None:
    one, other = MeanRateEstimator(), MeanRateEstimator()
    one.observe(70, 9_000)
    other.load(one.dump())
    for estimator in (one, other):
        estimator.observe(30, 9_000)
    assert one.estimate(77) == other.estimate(77)
