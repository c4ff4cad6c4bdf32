//! Tensors with one step count. When the device decides whether a step is applied, the counts lie there, and the host
//! knows only which tensors have had their gradients in the same steps: they count together.

use crate::register::Tensor;
use crate::table::Class;
use std::collections::HashMap;

/// Which tensors count together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Classes {
    /// Of each tensor, an index into `list`.
    pub(crate) of: Vec<u32>,
    /// No more than tensors.
    pub(crate) list: Vec<Class>,
}

impl Classes {
    /// With the count of each class. `apart`: each tensor for itself.
    pub(crate) fn new(tensors: &[Tensor], steps: &[u64], apart: bool) -> (Self, Vec<u64>) {
        let mut indices = HashMap::new();
        let (mut list, mut counts) = (Vec::new(), Vec::new());
        let class = |(i, (tensor, &step)): (usize, (&Tensor, &u64))| {
            let alone = if apart { i } else { 0 };
            *indices.entry((tensor.group, step, alone)).or_insert_with(|| {
                list.push(Class { group: index(tensor.group), has_grad: 0 });
                counts.push(step);
                index(list.len() - 1)
            })
        };
        let of = tensors.iter().zip(steps).enumerate().map(class).collect();
        (Self { of, list }, counts)
    }

    /// For a step in which the tensors `has_grad` have gradients, if that is another than the last: where some of a
    /// class have and some have not, these become a class of their own. With the `(old, new)` of those.
    pub(crate) fn next(&self, has_grad: &[bool]) -> Option<(Self, Vec<(u32, u32)>)> {
        let same = self.of.iter().zip(has_grad).all(|(&class, &has)| self.list[class as usize].has_grad == has.into());
        (!same).then(|| self.split(has_grad))
    }

    fn split(&self, has_grad: &[bool]) -> (Self, Vec<(u32, u32)>) {
        let mut next = self.clone();
        // The first tensor of a class keeps it; others of the same kind stay with it.
        let mut kept: Vec<Option<bool>> = vec![None; self.list.len()];
        let mut split = Vec::new();
        let mut others = HashMap::new();
        for (class, &has) in next.of.iter_mut().zip(has_grad) {
            let old = *class as usize;
            if *kept[old].get_or_insert(has) != has {
                *class = *others.entry(old).or_insert_with(|| {
                    next.list.push(Class { has_grad: has.into(), ..self.list[old] });
                    let new = index(next.list.len() - 1);
                    split.push((index(old), new));
                    new
                });
            }
        }
        next.list.iter_mut().zip(kept).for_each(|(class, has)| class.has_grad = has.unwrap_or(false).into());
        (next, split)
    }
}

/// Groups and classes are fewer than tensors or as many, which a u32 counts; but groups that no tensor names.
fn index(i: usize) -> u32 {
    u32::try_from(i).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AdamWConfig, TensorSpec};
    use crate::register::lay_out;
    use proptest::prelude::*;

    fn tensors(groups: &[usize]) -> Vec<Tensor> {
        let specs: Vec<_> = groups.iter().map(|&group| TensorSpec::new(1).group(group)).collect();
        lay_out(&specs, &[AdamWConfig::default(); 3]).0
    }

    #[test]
    fn tensors_of_a_group_count_together_until_one_of_them_has_no_gradient() {
        let (classes, counts) = Classes::new(&tensors(&[0, 1, 0]), &[0; 3], false);
        assert_eq!((&classes.of[..], &counts[..]), (&[0, 1, 0][..], &[0, 0][..]));
        let (classes, split) = classes.next(&[true; 3]).unwrap();
        assert_eq!((split, classes.next(&[true; 3])), (vec![], None));
        let (classes, split) = classes.next(&[true, true, false]).unwrap();
        assert_eq!((split, &classes.of[..]), (vec![(0, 2)], &[0, 1, 2][..]));
        assert_eq!(classes.list.iter().map(|class| class.has_grad).collect::<Vec<_>>(), [1, 1, 0]);
        let (classes, split) = classes.next(&[true; 3]).unwrap();
        assert_eq!((split, &classes.of[..]), (vec![], &[0, 1, 2][..]));
    }

    proptest! {
        // A count for each tensor, moved with its gradients, is that of its class.
        #[test]
        fn the_counts_are_those_of_the_tensors(
            groups in prop::collection::vec(0..3_usize, 1..12),
            steps in prop::collection::vec(prop::collection::vec(any::<bool>(), 12), 0..12),
        ) {
            let (mut classes, mut counts) = Classes::new(&tensors(&groups), &vec![0; groups.len()], false);
            let mut wanted = vec![0; groups.len()];
            for step in steps {
                let has_grad = &step[..groups.len()];
                if let Some((next, split)) = classes.next(has_grad) {
                    counts.resize(next.list.len(), 0);
                    split.into_iter().for_each(|(old, new)| counts[new as usize] = counts[old as usize]);
                    classes = next;
                }
                counts.iter_mut().zip(&classes.list).for_each(|(count, class)| *count += u64::from(class.has_grad));
                wanted.iter_mut().zip(has_grad).for_each(|(count, &has)| *count += u64::from(has));
                let found: Vec<u64> = classes.of.iter().map(|&class| counts[class as usize]).collect();
                prop_assert_eq!(&found, &wanted);
                prop_assert!(classes.list.len() <= groups.len());
                prop_assert!(classes.of.iter().zip(&groups).all(|(&class, &group)| classes.list[class as usize].group as usize == group));
            }
        }
    }
}
