//! Tensors with one step count. When the device decides whether a step is applied, the counts lie there, and the host
//! knows only which tensors have had their gradients in the same steps: they count together.

use crate::register::Tensor;
use crate::table::Class;
use std::collections::HashMap;

/// Which tensors count together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Classes {
    /// Of each tensor, an index into `list`.
    pub(crate) of: Vec<u32>,
    /// No more than tensors.
    pub(crate) list: Vec<Class>,
}

impl Classes {
    /// As few as can be, with the count of each: for a step in which the tensors `has_grad` have gradients. Those of
    /// gradients come first.
    pub(crate) fn fewest(tensors: &[Tensor], steps: &[u64], has_grad: &[bool]) -> (Self, Vec<u64>) {
        let mut counted = Counted::new(tensors.len());
        for wanted in [true, false] {
            for (i, tensor) in tensors.iter().enumerate().filter(|&(i, _)| has_grad[i] == wanted) {
                counted.put(i, Class { group: index(tensor.group), has_grad: wanted.into() }, steps[i]);
            }
        }
        (counted.classes, counted.counts)
    }

    /// Each tensor for itself, with its count; none has a gradient.
    pub(crate) fn apart(tensors: &[Tensor], steps: &[u64]) -> (Self, Vec<u64>) {
        let class = |tensor: &Tensor| Class { group: index(tensor.group), has_grad: 0 };
        let of = (0..tensors.len()).map(index).collect();
        (Self { of, list: tensors.iter().map(class).collect() }, steps.to_vec())
    }

    /// Whether the tensors `has_grad` are those that have gradients.
    pub(crate) fn fit(&self, has_grad: &[bool]) -> bool {
        self.of.iter().zip(has_grad).all(|(&class, &has)| self.list[class as usize].has_grad == u32::from(has))
    }

    /// For a step in which other tensors have gradients: where some of a class have and some have not, these become a
    /// class of their own. With the `(old, new)` of those.
    pub(crate) fn split(&self, has_grad: &[bool]) -> (Self, Vec<(u32, u32)>) {
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

/// Classes in the making.
struct Counted {
    classes: Classes,
    counts: Vec<u64>,
    indices: HashMap<(Class, u64), u32>,
    /// The one put last: nearly always the next one's.
    last: Option<((Class, u64), u32)>,
}

impl Counted {
    fn new(tensors: usize) -> Self {
        let classes = Classes { of: vec![0; tensors], list: Vec::new() };
        Self { classes, counts: Vec::new(), indices: HashMap::new(), last: None }
    }

    fn put(&mut self, tensor: usize, class: Class, count: u64) {
        let key = (class, count);
        let of = match self.last {
            Some((last, of)) if last == key => of,
            _ => *self.indices.entry(key).or_insert_with(|| {
                self.classes.list.push(class);
                self.counts.push(count);
                index(self.counts.len() - 1)
            }),
        };
        self.classes.of[tensor] = of;
        self.last = Some((key, of));
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
        let (classes, counts) = Classes::fewest(&tensors(&[0, 1, 0]), &[0; 3], &[true; 3]);
        assert_eq!((&classes.of[..], &counts[..]), (&[0, 1, 0][..], &[0, 0][..]));
        assert!(classes.fit(&[true; 3]) && !classes.fit(&[true, true, false]));
        let (classes, split) = classes.split(&[true, true, false]);
        assert_eq!((split, &classes.of[..]), (vec![(0, 2)], &[0, 1, 2][..]));
        assert_eq!(classes.list.iter().map(|class| class.has_grad).collect::<Vec<_>>(), [1, 1, 0]);
        let (classes, split) = classes.split(&[true; 3]);
        assert_eq!((split, &classes.of[..]), (vec![], &[0, 1, 2][..]));
    }

    #[test]
    fn the_fewest_classes_are_those_of_one_group_one_count_and_gradients_first() {
        let (classes, counts) = Classes::fewest(&tensors(&[1, 0, 1, 0]), &[3, 3, 3, 4], &[false, true, true, true]);
        assert_eq!((&classes.of[..], &counts[..]), (&[3, 0, 1, 2][..], &[3, 3, 4, 3][..]));
        assert!(classes.fit(&[false, true, true, true]));
    }

    proptest! {
        // A count for each tensor, moved with its gradients, is that of its class.
        #[test]
        fn the_counts_are_those_of_the_tensors(
            apart in any::<bool>(),
            groups in prop::collection::vec(0..3_usize, 1..12),
            steps in prop::collection::vec(prop::collection::vec(any::<bool>(), 12), 0..12),
        ) {
            let (tensors, mut wanted) = (tensors(&groups), vec![0; groups.len()]);
            let (mut classes, mut counts) = match apart {
                true => Classes::apart(&tensors, &wanted),
                false => Classes::fewest(&tensors, &wanted, &vec![false; groups.len()]),
            };
            for step in steps {
                let has_grad = &step[..groups.len()];
                if !classes.fit(has_grad) {
                    let (next, split) = classes.split(has_grad);
                    split.into_iter().for_each(|(old, _new)| counts.push(counts[old as usize]));
                    classes = next;
                }
                prop_assert!(classes.fit(has_grad));
                counts.iter_mut().zip(&classes.list).for_each(|(count, class)| *count += u64::from(class.has_grad));
                wanted.iter_mut().zip(has_grad).for_each(|(count, &has)| *count += u64::from(has));
                let found: Vec<u64> = classes.of.iter().map(|&class| counts[class as usize]).collect();
                prop_assert_eq!(&found, &wanted);
                prop_assert!(classes.list.len() <= groups.len());
                prop_assert!(classes.of.iter().zip(&groups).all(|(&class, &group)| classes.list[class as usize].group as usize == group));
                let (fewest, counts) = Classes::fewest(&tensors, &wanted, has_grad);
                prop_assert!(fewest.fit(has_grad) && fewest.list.len() <= classes.list.len());
                let found: Vec<u64> = fewest.of.iter().map(|&class| counts[class as usize]).collect();
                prop_assert_eq!(found, wanted.clone());
            }
        }
    }
}
