"""Metrics parse, and their labels cannot be made to grow."""

from prometheus_client.parser import text_string_to_metric_families

from backends.protocol import CacheStats
from backends.wire import Stats
from server.metrics import EngineNumbers, Metrics

STATS = Stats(1, 2, 0, CacheStats(100, 40, 3, 7), 10, 5, 6, 1, 8, 9, 11, 12)


def _values(metrics: Metrics) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def test_the_engines_numbers_are_told_while_it_is_up() -> None:
    numbers = EngineNumbers(3, 4, 2, STATS)
    told = _values(Metrics(lambda: numbers))
    assert (told["kefu_num_requests_waiting"], told["kefu_num_requests_running"], told["kefu_engine_restarts_total"]) == (3, 4, 2)
    assert (told["kefu_kv_tokens"], told["kefu_kv_tokens_used"]) == (100, 40)
    assert (told["kefu_forced_closes_total"], told["kefu_loop_closes_total"], told["kefu_engine_up"]) == (8, 9, 1)
    down = _values(Metrics(lambda: EngineNumbers(0, 0, 2, None)))
    assert down["kefu_engine_up"] == 0
    assert "kefu_kv_tokens" not in down


def test_whatever_is_asked_the_number_of_series_stays() -> None:
    metrics = Metrics(lambda: EngineNumbers(0, 0, 0, None))

    def num_series() -> int:
        return len(metrics.render().splitlines())

    metrics.observe_request("BREW", "unmatched", 404, 0.1)
    before = num_series()
    for i in range(50):
        metrics.observe_request(f"METHOD{i}", "unmatched", 404, 0.1)
    assert num_series() == before
