"""What is made of measured traffic: wrong sums fail, slow ones are told with what they cost. No pace is asserted."""

from dataclasses import replace

from ssl_ft.doctor.network import Traffic, check_network, judge_traffic

FAST = Traffic("gloo", num_ranks=4, num_nodes=2, is_right=True, mb_per_s=900.0, latency_ms=0.2)


def test_fast_and_right_passes_without_advice():
    finding = judge_traffic(FAST)
    assert (finding.verdict, finding.advice) == ("pass", "")
    assert "4 ranks on 2 machines" in finding.measured
    assert "0.050 s a step" in finding.measured


def test_wrong_sums_fail():
    assert judge_traffic(replace(FAST, is_right=False)).verdict == "fail"


def test_slow_is_told_and_no_failure():
    finding = judge_traffic(replace(FAST, mb_per_s=9.0))
    assert finding.verdict == "pass"
    assert "GLOO_SOCKET_IFNAME" in finding.advice


def test_one_rank_has_nothing_between():
    assert check_network(num_ranks=1).verdict == "cannot check"
