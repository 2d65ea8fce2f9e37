from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearmargin.deidentification.dates import is_time, shift_date, shift_datetime
from clearmargin.deidentification.key import LONGEST_SHIFT_DAYS, Key

DAYS = st.integers(-LONGEST_SHIFT_DAYS, -1)
DATES = st.dates(date(1900, 1, 1), date(2100, 12, 31))


@given(DATES, DATES, DAYS)
def test_intervals_stay(first, second, days):
    moved = [shift_date(f"{d:%Y%m%d}", days) for d in (first, second)]
    there = [date(int(m[:4]), int(m[4:6]), int(m[6:])) for m in moved]
    assert there[1] - there[0] == second - first
    assert there[0] - first == timedelta(days=days)


@given(DATES, DAYS, st.sampled_from(["", "10", "1011", "101112", "101112.123456", "101112+0100", "-0500"]))
def test_a_datetime_moves_as_its_date_and_keeps_its_time(day, days, rest):
    text = f"{day:%Y%m%d}"
    assert shift_datetime(text + rest, days) == shift_date(text, days) + rest


@given(DATES, DAYS)
def test_less_precise_datetimes_stay_so(day, days):
    assert len(shift_datetime(f"{day:%Y%m}", days)) == 6
    assert len(shift_datetime(f"{day:%Y}", days)) == 4


@pytest.mark.parametrize(
    "text", ["20230229", "2023", "Miller^Anna", "20231301", "20230101x", "00010101", "2023-01-01"]
)
def test_what_is_no_date_is_none(text):
    assert shift_date(text, -400) is None


@pytest.mark.parametrize(
    "text", ["Miller", "20230229", "2023010125", "20230101101112 Miller", "20230101+9999"]
)
def test_what_is_no_datetime_is_none(text):
    assert shift_datetime(text, -1) is None


def test_old_dates_with_points_come_out_in_todays_form():
    assert shift_date("1999.01.01", -1) == "19981231"


def test_times():
    assert is_time("101112.5") and is_time("10:11:12") and is_time("23")
    assert not is_time("24") and not is_time("Miller") and not is_time("10111 2")


@given(st.text(max_size=20))
def test_shifts_are_the_patients_own_and_lie_in_the_past(patient):
    key = Key(b"k" * 32)
    assert -LONGEST_SHIFT_DAYS <= key.shift_days(patient) <= -1
    assert key.shift_days(patient) == Key(b"k" * 32).shift_days(patient)
