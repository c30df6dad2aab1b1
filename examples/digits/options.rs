//! What a command line may hold.

/// A number from 1 on.
pub fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "no number from 1 on".to_owned())
}
