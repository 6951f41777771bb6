// SPDX-License-Identifier: LGPL-2.1-only
//! Amounts in sentences, without the numbers with a floating point of the standard library, which take room in every checkpoint.

/// A fraction with some places behind its point, rounded: "2.5".
pub(crate) fn fraction(amount: u64, unit: u64, places: usize) -> String {
    let (one, unit) = (10u128.pow(places as u32), u128::from(unit));
    let all = (u128::from(amount) * one + unit / 2) / unit;
    format!("{}.{:0places$}", all / one, all % one)
}

/// "1.8 MiB"
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    // What would be written as 1024.0 is 1.0 of the next.
    let is_less = |power: &u32| u128::from(bytes) * 20 < (1024 * 20 - 1) << (10 * power);
    let power = (1..6).find(is_less).unwrap_or(6);
    format!("{} {}", fraction(bytes, 1 << (10 * power), 1), UNITS[power as usize - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1_048_524, "1023.9 KiB"),
            (1_048_525, "1.0 MiB"),
            (1_886_016, "1.8 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn fractions() {
        assert_eq!(fraction(2499, 1000, 1), "2.5");
        assert_eq!(fraction(2449, 1000, 1), "2.4");
        assert_eq!(fraction(1_000_499, 1_000_000, 3), "1.000");
        assert_eq!(fraction(42, 1000, 3), "0.042");
        assert_eq!(fraction(u64::MAX, 1, 1), "18446744073709551615.0");
    }
}
