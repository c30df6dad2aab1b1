//! The bodies of the functions for each element, with their signatures.

use super::*;

/// Takes `from` into `into`, after it is known that no count leaves u64.
pub unsafe fn merge(channels: usize, into: *mut State, from: *const State) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller; a `State` is a `Welford`.
        let (into, from) = unsafe {
            (
                arguments.write("into", into.cast::<Welford>(), channels)?,
                arguments.read("from", from.cast::<Welford>(), channels)?,
            )
        };
        let overflows = |(into, from): (&Welford, &Welford)| into.count().checked_add(from.count()).is_none();
        if let Some(channel) = into.iter().zip(from).position(overflows) {
            let (into, from) = (into[channel].count(), from[channel].count());
            let message = format!(
                "into[{channel}] counts {into} elements and from[{channel}] {from}, must be fewer than 2^64 together"
            );
            return Err(Failure(Status::Overflow, message));
        }
        into.iter_mut().zip(from).for_each(|(into, from)| into.merge(from));
        Ok(())
    })
}

pub unsafe fn statistics<T: Element>(problem: *const Problem, x: *const T, states: *mut State) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let (len, c) = (problem.shape.len(), problem.shape.channels());
            let x = arguments.read("x", x, len)?;
            let states = arguments.write("states", states.cast::<Welford>(), c)?;
            problem.run(|shape| crate::statistics(shape, x, states))
        }
    })
}

pub unsafe fn forward_training<T: Element>(
    problem: *const Problem,
    x: *const T,
    gamma: *const T,
    beta: *const T,
    eps: f64,
    y: *mut T,
    states: *mut State,
) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let (len, c) = (problem.shape.len(), problem.shape.channels());
            let gamma = arguments.optional("gamma", gamma, c)?;
            let beta = arguments.optional("beta", beta, c)?;
            let states = arguments.write("states", states.cast::<Welford>(), c)?;
            let params = params(gamma, beta, eps);
            let in_place = std::ptr::eq(x, y);
            let y = arguments.write("y", y, len)?;
            if in_place {
                return problem.run(|shape| crate::forward_training_in_place(shape, y, &params, states));
            }
            let x = arguments.read("x", x, len)?;
            problem.run(|shape| crate::forward_training(shape, x, &params, y, states))
        }
    })
}

#[expect(clippy::too_many_arguments, reason = "the arguments of the operation, flat as C has them")]
pub unsafe fn forward_inference<T: Element>(
    problem: *const Problem,
    x: *const T,
    mean: *const T,
    var: *const T,
    gamma: *const T,
    beta: *const T,
    eps: f64,
    y: *mut T,
) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let (len, c) = (problem.shape.len(), problem.shape.channels());
            let mean = arguments.read("mean", mean, c)?;
            let var = arguments.read("var", var, c)?;
            let gamma = arguments.optional("gamma", gamma, c)?;
            let beta = arguments.optional("beta", beta, c)?;
            let params = params(gamma, beta, eps);
            let in_place = std::ptr::eq(x, y);
            let y = arguments.write("y", y, len)?;
            if in_place {
                return problem.run(|shape| crate::forward_inference_in_place(shape, y, mean, var, &params));
            }
            let x = arguments.read("x", x, len)?;
            problem.run(|shape| crate::forward_inference(shape, x, mean, var, &params, y))
        }
    })
}

/// Where a backward pass writes; null for what is not wanted.
pub struct Outputs<T> {
    pub dx: *mut T,
    pub dgamma: *mut T,
    pub dbeta: *mut T,
    pub dmean: *mut T,
    pub dvar: *mut T,
}

impl<T: Element> Outputs<T> {
    unsafe fn checked<'a>(
        self,
        arguments: &mut Arguments,
        shape: &Shape,
    ) -> Result<Gradients<'a, T>, Failure> {
        let c = shape.channels();
        let mut gradients = Gradients::new();
        // SAFETY: says the caller.
        unsafe {
            gradients.dx = arguments.optional_write("dx", self.dx, shape.len())?;
            gradients.dgamma = arguments.optional_write("dgamma", self.dgamma, c)?;
            gradients.dbeta = arguments.optional_write("dbeta", self.dbeta, c)?;
            gradients.dmean = arguments.optional_write("dmean", self.dmean, c)?;
            gradients.dvar = arguments.optional_write("dvar", self.dvar, c)?;
        }
        Ok(gradients)
    }
}

pub unsafe fn backward<T: Element>(
    problem: *const Problem,
    x: *const T,
    dy: *const T,
    states: *const State,
    gamma: *const T,
    eps: f64,
    outputs: Outputs<T>,
) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let (len, c) = (problem.shape.len(), problem.shape.channels());
            let x = arguments.read("x", x, len)?;
            let dy = arguments.read("dy", dy, len)?;
            let states = arguments.read("states", states.cast::<Welford>(), c)?;
            let params = params(arguments.optional("gamma", gamma, c)?, None, eps);
            let gradients = outputs.checked(&mut arguments, &problem.shape)?;
            problem.run(|shape| crate::backward(shape, x, dy, states, &params, gradients))
        }
    })
}

#[expect(clippy::too_many_arguments, reason = "the arguments of the operation, flat as C has them")]
pub unsafe fn backward_frozen<T: Element>(
    problem: *const Problem,
    x: *const T,
    dy: *const T,
    mean: *const T,
    var: *const T,
    gamma: *const T,
    eps: f64,
    outputs: Outputs<T>,
) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let problem = Checked::new(&mut arguments, problem)?;
            let (len, c) = (problem.shape.len(), problem.shape.channels());
            let x = arguments.read("x", x, len)?;
            let dy = arguments.read("dy", dy, len)?;
            let mean = arguments.read("mean", mean, c)?;
            let var = arguments.read("var", var, c)?;
            let params = params(arguments.optional("gamma", gamma, c)?, None, eps);
            let gradients = outputs.checked(&mut arguments, &problem.shape)?;
            problem.run(|shape| crate::backward_frozen(shape, x, dy, mean, var, &params, gradients))
        }
    })
}

pub unsafe fn update_running<T: Element>(
    channels: usize,
    update: *const Update,
    batches: u64,
    states: *const State,
    mean: *mut T,
    var: *mut T,
) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let update = arguments.read("update", update, 1)?[0].checked()?;
            let states = arguments.read("states", states.cast::<Welford>(), channels)?;
            let mean = arguments.write("mean", mean, channels)?;
            let var = arguments.write("var", var, channels)?;
            Ok(crate::update_running(update, batches, states, mean, var)?)
        }
    })
}

pub unsafe fn step<T: Element>(len: usize, lr: f64, gradient: *const T, parameter: *mut T) -> Status {
    call(|| {
        let mut arguments = Arguments::default();
        // SAFETY: says the caller.
        unsafe {
            let gradient = arguments.read("gradient", gradient, len)?;
            let parameter = arguments.write("parameter", parameter, len)?;
            Ok(crate::step(lr, gradient, parameter)?)
        }
    })
}
