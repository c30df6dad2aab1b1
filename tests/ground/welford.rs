//! Welford states taken apart, put together, stored, sent and merged.

use batchnorm::{Error, Shape, Welford, WelfordParts, statistics};

use crate::common::data;
use crate::common::exact::Statistics;

fn state(x: &[f64]) -> Welford {
    let mut states = [Welford::new()];
    statistics(&Shape::nchw(&[1, 1, x.len()]).unwrap(), x, &mut states).unwrap();
    states[0]
}

/// States of all kinds of data: ordinary, huge, tiny, zeros, NaN, none.
fn states() -> Vec<Welford> {
    let sets = data::F64.iter().map(|set| state(&set.generate(5000, 1)));
    let others = [Welford::new(), [f64::NAN].into_iter().collect(), [1e300, -1e300].into_iter().collect()];
    let mut single = [Welford::new()];
    let x = data::normals(5000, 1, 1e4, 1.0);
    statistics(&Shape::nchw(&[1, 1, 5000]).unwrap(), &x, &mut single).unwrap();
    sets.chain(others).chain(single).collect()
}

fn same(left: &Welford, right: &Welford) -> bool {
    let bits = |state: &Welford| {
        let WelfordParts { count, mean, mean_low, m2, m2_low, exponent } = state.into_parts();
        (count, [mean, mean_low, m2, m2_low].map(f64::to_bits), exponent)
    };
    bits(left) == bits(right)
}

#[test]
fn parts_make_the_state_that_they_are_of() {
    for state in states() {
        assert!(same(&Welford::from_parts(state.into_parts()).unwrap(), &state), "{state:?}");
        assert!(same(&Welford::try_from(WelfordParts::from(state)).unwrap(), &state), "{state:?}");
    }
}

#[test]
fn parts_of_no_state_are_errors() {
    let good = WelfordParts { count: 3, mean: 1.0, mean_low: 1e-20, m2: 2.0, m2_low: 1e-20, exponent: 0 };
    assert!(Welford::from_parts(good).is_ok());
    for bad in [
        WelfordParts { count: 0, ..good },
        WelfordParts { exponent: 1, ..good },
        WelfordParts { exponent: i64::MIN, ..good },
        WelfordParts { mean: f64::INFINITY, ..good },
        WelfordParts { mean: f64::NAN, ..good },
        WelfordParts { mean_low: f64::NAN, ..good },
        WelfordParts { m2: -1.0, ..good },
        WelfordParts { m2: f64::NAN, ..good },
        WelfordParts { m2: f64::INFINITY, ..good },
        WelfordParts { m2_low: f64::NEG_INFINITY, ..good },
        WelfordParts { m2_low: -3.0, ..good },
    ] {
        assert!(matches!(Welford::from_parts(bad), Err(Error::State { .. })), "{bad:?}");
    }
    let nan = Welford::from_parts(WelfordParts { mean: f64::NAN, m2: -f64::NAN, ..good }).unwrap();
    assert_eq!([nan.mean(), nan.variance()].map(f64::to_bits), [f64::NAN.to_bits(); 2]);
    assert_eq!(nan.count(), 3);
}

/// Statistics of parts are those of the whole, within f64's contract, whatever exponents the parts have.
#[test]
fn parts_of_any_size_merge() {
    for set in &data::F64 {
        let x = set.generate(20_000, 3);
        for cut in [1, 2, 777, 4096, 10_000, 19_999] {
            let (left, right) = x.split_at(cut);
            let mut pushed: Welford = left[..cut.min(50)].iter().copied().collect();
            pushed.merge(&state(&x[cut.min(50)..]));
            let [mut forwards, mut backwards] = [state(left), state(right)];
            forwards.merge(&state(right));
            backwards.merge(&state(left));
            let exact = Statistics::of(&x);
            let ulp = |x: f64| f64::from_bits(x.to_bits() & f64::INFINITY.to_bits()) * 2f64.powi(-52);
            for state in [forwards, backwards, pushed] {
                assert_eq!(state.count(), 20_000);
                let (off, var) = (exact.var_distance(&state), exact.scaled_var());
                assert!(off <= 4.0 * ulp(var), "{} at {cut}: variance off by {off:e} of {var:e}", set.name);
            }
        }
    }
}

/// The mean of elements near the least normal number, whose low part alone would be a subnormal one.
#[test]
fn the_mean_of_tiny_elements_is_rounded_once() {
    let unit = f64::MIN_POSITIVE * 4.0;
    let x: Vec<f64> =
        [0x6078f6c2fc902u64, 0x6078f72b45dfe, 0x6078f7c617d26, 0x6078f4f386796, 0x6078f837b9a17]
            .map(|mantissa| f64::from_bits(1023 << 52 | mantissa) * unit)
            .to_vec();
    assert_eq!(state(&x).mean(), f64::from_bits(1023 << 52 | 0x6078f6f98545d) * unit);
    let mut rng = data::rng(9);
    for len in (2..400).cycle().take(4000) {
        let x: Vec<f64> = (0..len).map(|_| (1.0 + rand::RngExt::random::<f64>(&mut rng)) * unit).collect();
        let (got, exact) = (state(&x).mean(), Statistics::of(&x));
        let distance = exact.mean_distance(got);
        let ulp = unit * 2f64.powi(-52 - exact.exponent);
        assert!(distance <= 0.5 * ulp * (1.0 + 1e-9), "{len}: {got:e} is {} ulp off", distance / ulp);
    }
}

#[test]
fn counts_do_not_overflow() {
    let many = Welford::from_parts(WelfordParts { count: u64::MAX - 1, ..WelfordParts::default() }).unwrap();
    let mut state = many;
    state.merge(&many);
    assert_eq!((state.count(), state.mean(), state.variance()), (u64::MAX, 0.0, 0.0));
}

#[cfg(feature = "serde")]
mod serde {
    use super::*;

    #[test]
    fn states_go_through_json() {
        for state in states().into_iter().filter(|state| !state.mean().is_nan()) {
            let text = serde_json::to_string(&state).unwrap();
            let back: Welford = serde_json::from_str(&text).unwrap();
            assert!(same(&back, &state), "{text}");
        }
        let state: Welford = [1.0, 3.0].into_iter().collect();
        let text = r#"{"count":2,"mean":2.0,"mean_low":0.0,"m2":2.0,"m2_low":0.0,"exponent":0}"#;
        assert_eq!(serde_json::to_string(&state).unwrap(), text);
        // The low parts and the exponent may be left out.
        assert_eq!(serde_json::from_str::<Welford>(r#"{"count":2,"mean":2.0,"m2":2.0}"#).unwrap(), state);
    }

    #[test]
    fn what_is_no_state_is_refused() {
        for text in [
            r#"{"count":0,"mean":2.0,"m2":2.0}"#,
            r#"{"count":2,"mean":2.0,"m2":-2.0}"#,
            r#"{"count":2,"mean":2.0,"m2":2.0,"exponent":7}"#,
            r#"{"count":2,"mean":2.0}"#,
        ] {
            assert!(serde_json::from_str::<Welford>(text).is_err(), "{text}");
        }
    }
}
