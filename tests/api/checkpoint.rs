//! Layers taken apart and made of their parts again: what is stored goes on as if it had never stopped.

use batchnorm::{
    Activation, BatchNorm, Domain, Mode, Parts, Renorm, RunningUpdate, RunningVariance, Shape,
    StreamingStatistics, UpdateRule,
};

use crate::common::matrix::{Bits, Problem};

/// Some steps of training.
fn train<T: Bits>(layer: &mut BatchNorm<T>, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let problem = Problem::<T>::new(&[3, 4, 7], seed);
        let shape = Shape::nchw(&problem.dims).unwrap();
        let mut out = vec![T::default(); shape.len()];
        layer.forward_training(&shape, &problem.x, &mut out).unwrap();
        layer.backward(&shape, &problem.x, &problem.dy, &mut out).unwrap();
        layer.step(0.1).unwrap();
    }
}

/// Layers of every rule, with and without parameters.
fn layers<T: Bits>() -> Vec<BatchNorm<T>> {
    let rules = [UpdateRule::Momentum(0.1), UpdateRule::Decay(0.75), UpdateRule::Cumulative];
    let variances = [RunningVariance::Biased, RunningVariance::Unbiased];
    let updates = rules.iter().flat_map(|&rule| variances.map(|variance| RunningUpdate { rule, variance }));
    let layers = updates.map(|update| BatchNorm::new(4).with_update(update).with_eps(1e-3));
    let without = [BatchNorm::new(4).without_gamma(), BatchNorm::new(4).without_beta()];
    let activations = [
        Activation::Relu,
        Activation::LeakyRelu { slope: 0.1 },
        Activation::Clip { lo: -1.0, hi: 6.0 },
        Activation::HardSwish,
        Activation::Silu,
    ];
    let renormalized = [(1.0, 0.0), (1.5, 0.25), (3.0, f64::MAX)]
        .map(|(r_max, d_max)| BatchNorm::new(4).with_renorm(Renorm { r_max, d_max }));
    let activated = activations.map(|a| BatchNorm::new(4).with_activation(a));
    layers
        .chain(without)
        .chain(activated)
        .chain(renormalized)
        .chain([BatchNorm::new(4).with_domains(3)])
        .collect()
}

#[test]
fn a_layer_of_its_parts_goes_on_as_it_would_have() {
    fn check<T: Bits>() {
        for mut layer in layers::<T>() {
            train(&mut layer, 0..3);
            let mut restored = BatchNorm::from_parts(layer.clone().into_parts()).unwrap();
            assert_eq!((&restored, restored.parts()), (&layer, layer.parts()));
            train(&mut layer, 3..6);
            train(&mut restored, 3..6);
            assert_eq!(restored, layer);
            assert_eq!(layer.batches(), 6);
        }
    }
    check::<f32>();
    check::<f64>();
}

/// Equality is of what a checkpoint holds: of every part, and of nothing else.
#[test]
fn layers_are_equal_if_their_parts_are() {
    let shape = Shape::nchw(&[2, 3]).unwrap();
    let layer = BatchNorm::<f32>::new(3);
    let mut used = layer.clone();
    used.forward(Mode::TrainingKeepRunning, &shape, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 7.0], &mut [0.0; 6])
        .unwrap();
    used.backward(&shape, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 7.0], &[1.0; 6], &mut [0.0; 6]).unwrap();
    assert_ne!((used.states(), used.dbeta()), (layer.states(), layer.dbeta()));
    assert_eq!(used, layer);
    type Change = fn(&mut Parts<f32>);
    let changes: [Change; 12] = [
        |parts| parts.gamma = None,
        |parts| parts.gamma = Some(vec![1.0, 1.0, 1.5]),
        |parts| parts.beta = None,
        |parts| parts.beta = Some(vec![0.0, 0.5, 0.0]),
        |parts| parts.running_mean[2] = 1.0,
        |parts| parts.running_var[0] = 2.0,
        |parts| parts.batches = 1,
        |parts| parts.eps = 1e-3,
        |parts| parts.update.variance = RunningVariance::Biased,
        |parts| parts.activation = Activation::Relu,
        |parts| parts.renorm = Some(Renorm { r_max: 1.0, d_max: 0.0 }),
        |parts| {
            let (running_mean, running_var) = (parts.running_mean.clone(), parts.running_var.clone());
            parts.domains = vec![Domain { running_mean, running_var, batches: 0 }];
        },
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let mut parts = layer.parts().clone();
        change(&mut parts);
        assert_ne!(BatchNorm::from_parts(parts).unwrap(), layer, "change {i}");
    }
    assert_ne!(BatchNorm::<f32>::new(2), layer);
    // As floating point has it: a NaN equals nothing.
    let mut nan = layer.clone();
    nan.running_mean_mut()[1] = f32::NAN;
    assert!(nan != nan.clone());
}

/// Statistics over a data set may be put away half-way.
#[test]
fn streaming_statistics_go_on_from_their_states() {
    let problem = Problem::<f32>::new(&[3, 4, 7], 1);
    let shape = Shape::nchw(&problem.dims).unwrap();
    let mut whole = StreamingStatistics::new(4);
    whole.update(&shape, &problem.x).unwrap();
    let mut restored = StreamingStatistics::from(Vec::from(whole.clone()));
    assert_eq!(restored, whole);
    for streaming in [&mut whole, &mut restored] {
        streaming.update(&shape, &problem.dy).unwrap();
    }
    // What was put away is a part of its own, and merges to more bits than blocks do.
    for (restored, whole) in restored.states().iter().zip(whole.states()) {
        assert_eq!((restored.count(), whole.count()), (42, 42));
        assert!((restored.mean() - whole.mean()).abs() < 1e-15 * whole.variance().sqrt());
        assert!((restored.variance() / whole.variance() - 1.0).abs() < 1e-15);
    }
}

#[cfg(feature = "serde")]
mod with_serde {
    use super::*;
    use batchnorm::Layout;

    /// Through text and back, to the bit.
    #[test]
    fn layers_round_trip() {
        fn check<T: Bits + serde::Serialize + serde::de::DeserializeOwned>() {
            for mut layer in layers::<T>() {
                train(&mut layer, 0..3);
                let text = serde_json::to_string(&layer).unwrap();
                let mut restored: BatchNorm<T> = serde_json::from_str(&text).unwrap();
                assert_eq!(restored, layer);
                assert_eq!(serde_json::to_string(layer.parts()).unwrap(), text);
                train(&mut layer, 3..6);
                train(&mut restored, 3..6);
                assert_eq!(restored, layer);
            }
        }
        check::<f32>();
        check::<f64>();
    }

    /// The form of the text is part of the interface.
    #[test]
    fn the_text_of_a_layer_and_a_shape() {
        let text = r#"{"gamma":[1.0],"beta":null,"running_mean":[0.0],"running_var":[1.0],"batches":0,"eps":0.00001,"#;
        let text = text.to_owned() + r#""update":{"rule":{"Momentum":0.1},"variance":"Unbiased"}"#;
        let mut layer = BatchNorm::<f32>::new(1).without_beta();
        // A checkpoint that says nothing of an activation, renormalization or domains is of a time that knew none.
        for text in [format!("{text}}}"), format!(r#"{text},"activation":"Identity"}}"#)] {
            assert_eq!(serde_json::from_str::<BatchNorm<f32>>(&text).unwrap(), layer);
        }
        for (activation, named) in [
            (Activation::Identity, r#""Identity""#),
            (Activation::Relu, r#""Relu""#),
            (Activation::LeakyRelu { slope: 0.25 }, r#"{"LeakyRelu":{"slope":0.25}}"#),
            (Activation::Clip { lo: 0.0, hi: 6.0 }, r#"{"Clip":{"lo":0.0,"hi":6.0}}"#),
            (Activation::HardSwish, r#""HardSwish""#),
            (Activation::Silu, r#""Silu""#),
        ] {
            layer.set_activation(activation).unwrap();
            let text = format!(r#"{text},"activation":{named},"renorm":null,"domains":[]}}"#);
            assert_eq!(serde_json::to_string(&layer).unwrap(), text);
            assert_eq!(serde_json::from_str::<BatchNorm<f32>>(&text).unwrap(), layer);
        }
        let text =
            format!(r#"{text},"activation":"Silu","renorm":{{"r_max":3.0,"d_max":5.0}},"domains":[]}}"#);
        layer.set_renorm(Some(Renorm { r_max: 3.0, d_max: 5.0 })).unwrap();
        assert_eq!(serde_json::to_string(&layer).unwrap(), text);
        assert_eq!(serde_json::from_str::<BatchNorm<f32>>(&text).unwrap(), layer);
        let shape = Shape::nhwc(&[2, 5, 7, 3]).unwrap();
        let text = serde_json::to_string(&shape).unwrap();
        assert_eq!(text, r#"{"layout":"Nhwc","dims":[2,5,7,3]}"#);
        assert_eq!(serde_json::from_str::<Shape>(&text).unwrap(), shape);
        assert_eq!(serde_json::to_string(&[Layout::Nchw, Layout::Nhwc]).unwrap(), r#"["Nchw","Nhwc"]"#);
        assert_eq!(serde_json::to_string(&UpdateRule::Cumulative).unwrap(), r#""Cumulative""#);
    }

    #[test]
    fn streaming_statistics_round_trip() {
        let problem = Problem::<f64>::new(&[3, 4, 7], 2);
        let mut streaming = StreamingStatistics::new(4);
        streaming.update(&Shape::nchw(&problem.dims).unwrap(), &problem.x).unwrap();
        let text = serde_json::to_string(&streaming).unwrap();
        assert_eq!(text, serde_json::to_string(streaming.states()).unwrap());
        let restored: StreamingStatistics = serde_json::from_str(&text).unwrap();
        assert_eq!(restored, streaming);
    }

    /// What is read is checked as what is made of parts.
    #[test]
    fn bad_text_is_an_error() {
        let mut parts = Parts::<f32>::new(2);
        parts.gamma = Some(vec![1.0]);
        let long = serde_json::to_string(&parts).unwrap();
        let read = |text: &str| serde_json::from_str::<BatchNorm<f32>>(text).unwrap_err().to_string();
        assert!(read(&long).starts_with("gamma has length 1, must have length 2"), "{}", read(&long));
        let good = serde_json::to_string(&BatchNorm::<f32>::new(2)).unwrap();
        for (from, to, expected) in [
            ("0.00001", "-1", "eps is -1.0, must be finite and not negative"),
            (r#""Momentum":0.1"#, r#""Momentum":5"#, "momentum is 5.0, must be between 0 and 1"),
            (r#""Momentum":0.1"#, r#""Decay":-1"#, "decay is -1.0, must be between 0 and 1"),
            (r#""batches":0,"#, "", "missing field `batches`"),
            (r#""gamma":[1.0,1.0],"#, "", "missing field `gamma`"),
            (r#""beta":[0.0,0.0],"#, "", "missing field `beta`"),
            (r#""batches":0"#, r#""batches":-1"#, "invalid value: integer `-1`, expected u64"),
            (r#""eps""#, r#""epsilon""#, "unknown field `epsilon`"),
            (r#""Identity""#, r#""Gelu""#, "unknown variant `Gelu`"),
            (r#""Identity""#, r#"{"Clip":{"lo":1,"hi":0}}"#, "clip is from 1.0 to 0.0, must be"),
            (r#""Identity""#, r#"{"LeakyRelu":{}}"#, "missing field `slope`"),
            (r#""renorm":null"#, r#""renorm":{"r_max":0.5,"d_max":0}"#, "r_max is 0.5, must be at least 1.0"),
            (r#""renorm":null"#, r#""renorm":{"r_max":2}"#, "missing field `d_max`"),
        ] {
            let text = good.replace(from, to);
            assert_ne!(text, good);
            assert!(read(&text).starts_with(expected), "{}", read(&text));
        }
        for (text, expected) in [
            (r#"{"layout":"Nchw","dims":[3]}"#, "shape has 1 dimension(s)"),
            (
                r#"{"layout":"Nhwc","dims":[4294967296,4294967296]}"#,
                "shape [4294967296, 4294967296] has too many",
            ),
            (r#"{"layout":"Nwhc","dims":[3,4]}"#, "unknown variant `Nwhc`"),
        ] {
            let error = serde_json::from_str::<Shape>(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
