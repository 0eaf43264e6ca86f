//! K entries of several tensors together: those with the largest values, or any.

use std::collections::BTreeSet;

use ramekin_core::Draws;

/// The `count` largest of all values over all tensors, by tensor and ascending place. Of equal values
/// the one with the lowest place in the concatenation wins. NaN is never chosen before a number.
pub fn top(values: &[Vec<f32>], count: usize) -> Vec<Vec<u32>> {
    let mut all: Vec<f32> = values.iter().flatten().copied().collect();
    let count = count.min(all.len());
    let mut chosen = vec![Vec::new(); values.len()];
    if count == 0 {
        return chosen;
    }
    let key = |x: &f32| if x.is_nan() { f32::NEG_INFINITY } else { *x };
    let (_, threshold, _) = all.select_nth_unstable_by(count - 1, |a, b| key(b).total_cmp(&key(a)));
    let threshold = key(threshold);
    let above: usize = values.iter().flatten().filter(|x| key(x) > threshold).count();
    let mut ties = count - above;
    for (places, values) in chosen.iter_mut().zip(values) {
        for (i, x) in values.iter().enumerate() {
            let x = key(x);
            if x > threshold || x == threshold && ties > 0 {
                ties -= usize::from(x == threshold);
                places.push(i as u32);
            }
        }
    }
    chosen
}

/// Any `count` of all entries of tensors of these sizes, by tensor and ascending place (Floyd's way).
pub fn random(sizes: &[usize], count: usize, draws: &mut Draws) -> Vec<Vec<u32>> {
    let total: usize = sizes.iter().sum();
    let mut flat = BTreeSet::new();
    for last in total - count.min(total)..total {
        let at = draws.below(last + 1);
        if !flat.insert(at) {
            flat.insert(last);
        }
    }
    let mut chosen = vec![Vec::new(); sizes.len()];
    let (mut tensor, mut before) = (0, 0);
    for at in flat {
        while at >= before + sizes[tensor] {
            before += sizes[tensor];
            tensor += 1;
        }
        chosen[tensor].push((at - before) as u32);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_so_many_and_ties_from_the_front() {
        let values = vec![vec![1.0, 3.0, 2.0], vec![2.0, f32::NAN, 2.0, 5.0]];
        assert_eq!(top(&values, 4), [vec![1, 2], vec![0, 3]]);
        assert_eq!(top(&values, 0), [vec![], vec![]] as [Vec<u32>; 2]);
        assert_eq!(top(&values, 9).iter().map(Vec::len).sum::<usize>(), 7);
    }

    #[test]
    fn random_entries_are_distinct_and_even() {
        let mut counts = [0; 10];
        for seed in 0..400 {
            let mut draws = Draws::new(ramekin_core::Rng::new(seed).stream("t", 0));
            let chosen = random(&[4, 0, 6], 3, &mut draws);
            assert_eq!(chosen.iter().map(Vec::len).sum::<usize>(), 3);
            chosen[0].iter().for_each(|i| counts[*i as usize] += 1);
            chosen[2].iter().for_each(|i| counts[4 + *i as usize] += 1);
        }
        assert!(counts.iter().all(|c| (80..160).contains(c)), "{counts:?}"); // 120 each
    }
}
