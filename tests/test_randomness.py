"""Keyed random numbers: the published generator bit for bit, the distributions they claim, and the same however they are cut.

Shapes: B samples, L tokens, D width, N elements.
"""

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from imp_ds import randomness
from imp_ds.randomness import derive, dropout, normal, sample_keys, step_key, uniform

# Each statistic of the seeds below is a fixed number, so these tests cannot flicker; a bound of 5 standard deviations would
# be passed by all but one in 1.7 million seeds.
DEVIATIONS = 5.0
MASK = (1 << 64) - 1


def splitmix(state: int, index: int) -> int:
    """Output `index` of SplitMix64 seeded with `state`, in integers of any size (Steele, Lea and Flood, 2014, figure 17)."""
    z = (state + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def unsigned(tensor: torch.Tensor) -> list[int]:
    return [value & MASK for value in tensor.flatten().tolist()]


def many_keys(count: int) -> torch.Tensor:
    return sample_keys(seed=3, step=5, first=0, count=count)


class TestAgainstBigIntegers:
    def test_the_bits_are_the_published_generators(self):
        # the first outputs for the seed 1234567, by which implementations are checked (Rosetta Code, "Splitmix64")
        published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
        assert [splitmix(1234567, i) for i in range(5)] == published
        assert unsigned(randomness._bits(torch.tensor([1234567]), (5,))) == published

    def test_uniform_numbers_are_the_upper_24_bits(self):
        seeds = [0, 1, 1234567, MASK, 1 << 63]
        keys_B = torch.tensor([seed - (1 << 64) if seed >> 63 else seed for seed in seeds])
        expected = [[(splitmix(seed, i) >> 40) / 2**24 for i in range(1000)] for seed in seeds]
        assert uniform(keys_B, 1000).tolist() == expected
        assert torch.equal(uniform(keys_B, 25, 4, 10).flatten(1), uniform(keys_B, 1000))

    def test_normal_numbers_are_box_and_mullers(self):
        outputs = [splitmix(77, i) for i in range(500)]
        expected = [
            math.sqrt(-2 * math.log(1 - (z >> 40) / 2**24)) * math.cos(2 * math.pi * (z % 2**24) / 2**24) for z in outputs
        ]
        torch.testing.assert_close(normal(torch.tensor([77]), 500)[0], torch.tensor(expected), rtol=1e-5, atol=2e-6)

    def test_keys_are_derived_backwards(self):
        """Output -2 - n of the generator, of the state n + 1 before the key; elements are the outputs from 0 on. Output -1 is of
        the key itself and stays unused: for the key 0 it is 0 again."""
        assert unsigned(derive(torch.tensor([77, 78]), 4)) == [splitmix(77, -6), splitmix(78, -6)]
        assert splitmix(0, -1) == 0 and unsigned(derive(torch.tensor([0]), 0)) == [splitmix(0, -2)] != [0]
        big = 2**62 + 11  # whose product with the generator's step has 126 bits
        assert unsigned(derive(torch.tensor([77]), big)) == unsigned(derive(torch.tensor([77]), torch.tensor(big)))
        assert unsigned(derive(torch.tensor([77]), big)) == [splitmix(77, -2 - big)]

    @pytest.mark.parametrize("seed", [0, 9, MASK, 2**70 + 3])
    def test_the_keys_of_samples(self, seed):
        # the place of the seed's step 12 above, that of the sample in the lower 24 bits
        step = (splitmix(seed & MASK, -2) + 12) & MASK
        assert unsigned(sample_keys(seed, 12, 30, 4)) == [((step << 24) + i) & MASK for i in range(30, 34)]

    def test_every_sample_knows_the_key_of_its_step(self):
        keys = {(seed, step): step_key(sample_keys(seed, step, 0, 1)) for seed in (0, 2**63) for step in range(64)}
        assert len({key.item() for key in keys.values()}) == 2 * 64
        for (seed, step), key in keys.items():
            for first in (5, (1 << 24) - 3):
                assert torch.equal(step_key(sample_keys(seed, step, first, 3)), key)
        assert key.shape == (1,)

    def test_no_two_keys_of_a_run_are_alike(self):
        keys = torch.cat([sample_keys(seed, step, 0, 64) for seed in range(4) for step in range(64)])
        sites = torch.cat([keys, *(derive(keys, number) for number in range(16))])
        assert len(set(sites.tolist())) == 4 * 64 * 64 * 17


class TestDistributions:
    N = 1 << 20

    def test_uniform_numbers(self):
        """Mean 1/2 of variance 1/12; the mean square 1/3 has variance 1/5 - 1/9 = 4/45."""
        values = uniform(many_keys(1), self.N)[0].double()
        assert 0 <= values.min() < 1e-5 and 1 - 1e-5 < values.max() < 1
        assert abs(values.mean() - 1 / 2) < DEVIATIONS * math.sqrt(1 / 12 / self.N)
        assert abs(values.square().mean() - 1 / 3) < DEVIATIONS * math.sqrt(4 / 45 / self.N)

    def test_normal_numbers(self):
        """Moments 0, 1, 0, 3 of variances 1, 2, 15 and 105 - 9 = 96; share within 1 sigma erf(1 / sqrt 2)."""
        values = normal(many_keys(1), self.N)[0].double()
        for power, (moment, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
            assert abs(values.pow(power).mean() - moment) < DEVIATIONS * math.sqrt(variance / self.N), power
        within = math.erf(1 / math.sqrt(2))
        share = (values.abs() < 1).double().mean()
        assert abs(share - within) < DEVIATIONS * math.sqrt(within * (1 - within) / self.N)
        # the largest of 2^20 normal numbers lies above 4 but for a chance of exp(-2^20 * 6.3e-5) = 1e-29
        assert 4 < values.abs().max() <= math.sqrt(48 * math.log(2)) + 1e-5

    @pytest.mark.parametrize("axis", ["elements", "samples", "steps", "seeds", "sites", "between a key and its own"])
    def test_neighbours_are_not_correlated(self, axis):
        """The mean product of two independent centred uniform numbers is 0, of variance 1 / 144."""
        steps = torch.cat([sample_keys(3, step, 0, 1) for step in range(1025)])
        seeds = torch.cat([sample_keys(seed, 5, 0, 1) for seed in range(1025)])
        sites = torch.cat([derive(many_keys(1), number) for number in range(1025)])
        chains = {"samples": many_keys(1025), "steps": steps, "seeds": seeds, "sites": sites}
        if axis == "elements":
            values = uniform(many_keys(1), self.N + 1)[0] - 0.5
            left, right = values[:-1], values[1:]
        elif axis in chains:
            values = uniform(chains[axis], 1024) - 0.5
            left, right = values[:-1], values[1:]
        else:
            left, right = uniform(many_keys(1024), 1024) - 0.5, uniform(derive(many_keys(1024), 0), 1024) - 0.5
        assert left.numel() == self.N
        assert abs((left.double() * right.double()).mean()) < DEVIATIONS / 12 / math.sqrt(self.N)

    @pytest.mark.parametrize("source", ["elements", "samples", "sites"])
    def test_every_bit_is_one_half_of_the_time_and_alone(self, source):
        """Chi-square of the counts of ones of 64 bits: mean 64, variance 128. Chi-square of the 64 * 63 / 2 = 2016 pairs of bits
        (which differ one half of the time; any two pairs are independent): mean 2016, variance 4032."""
        count = 1 << 15
        if source == "elements":
            words = randomness._bits(many_keys(1), (count,))[0]
        else:
            # a sample's key itself only counts; what is drawn and derived from it has to be random
            words = randomness._bits(many_keys(count), (1,))[:, 0] if source == "samples" else derive(many_keys(count), 7)
        bits_NB = (words[:, None] >> torch.arange(64)) & 1
        ones_B = bits_NB.sum(0).double()
        alone = ((ones_B - count / 2).square() / (count / 4)).sum()
        assert abs(alone - 64) < DEVIATIONS * math.sqrt(128)
        signs_NB = (2 * bits_NB - 1).double()
        products_BB = (signs_NB.T @ signs_NB).triu(1)  # of standard deviation sqrt(count)
        pairs = (products_BB.square() / count).sum()
        assert abs(pairs - 2016) < DEVIATIONS * math.sqrt(4032)

    def test_the_bounds_would_see_a_weak_generator(self):
        """Without the mixing, neighbours are a constant apart."""
        words = torch.arange(1, (1 << 15) + 1) * randomness._signed(0x9E3779B97F4A7C15)
        values = ((words >> 40) & ((1 << 24) - 1)).double() / 2**24 - 0.5
        assert abs((values[:-1] * values[1:]).mean()) > DEVIATIONS / 12 / math.sqrt(len(values))


class TestDropout:
    def test_shares_and_scale(self):
        x_BLD = torch.ones(64, 16, 256)
        out_BLD = dropout(x_BLD, 0.2, many_keys(64))
        assert set(out_BLD.unique().tolist()) == {0.0, 1.25}  # 1 / (1 - 0.2)
        share = (out_BLD == 0).double().mean()
        assert abs(share - 0.2) < DEVIATIONS * math.sqrt(0.2 * 0.8 / out_BLD.numel())

    def test_nothing_without_a_key_or_a_rate(self):
        x_BLD = torch.randn(2, 3, 4)
        assert dropout(x_BLD, 0.5, None) is x_BLD and dropout(x_BLD, 0.0, many_keys(2)) is x_BLD

    def test_the_gradient_goes_where_the_values_went(self):
        x_BLD = torch.randn(4, 5, 6, requires_grad=True)
        out_BLD = dropout(x_BLD, 0.5, many_keys(4))
        out_BLD.sum().backward()
        torch.testing.assert_close(x_BLD.grad, (out_BLD != 0) * 2.0)  # 1 / (1 - 0.5)

    def test_what_is_dropped_vanishes_whatever_it_was(self):
        out = dropout(torch.full((1, 1, 1000), math.inf), 0.5, many_keys(1))
        assert set(out.flatten().tolist()) == {0.0, math.inf}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_the_type_stays_and_so_does_the_choice(self, dtype):
        x_BLD, keys_B = torch.ones(3, 4, 50), many_keys(3)
        out_BLD = dropout(x_BLD.to(dtype), 0.3, keys_B)
        assert out_BLD.dtype == dtype and torch.equal(out_BLD == 0, dropout(x_BLD, 0.3, keys_B) == 0)

    def test_a_part_of_a_batch_is_that_part(self):
        x_BLD = torch.randn(8, 3, 20)
        full_BLD = dropout(x_BLD, 0.4, sample_keys(1, 2, 0, 8))
        for world in (2, 4, 8):
            local = 8 // world
            parts = [x_BLD[r * local :][:local] for r in range(world)]
            spread = [dropout(part, 0.4, sample_keys(1, 2, r * local, local)) for r, part in enumerate(parts)]
            assert torch.equal(torch.cat(spread), full_BLD)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x_BLD, key_B):
        hidden_BLD = dropout(self.linear(x_BLD), 0.3, derive(key_B, 2))
        return hidden_BLD + 0.1 * normal(derive(key_B, 3), *x_BLD.shape[1:])


class TestWhereItRuns:
    def test_the_global_generator_plays_no_part(self):
        state = torch.get_rng_state()
        first = normal(many_keys(2), 10)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(99)
        assert torch.equal(normal(many_keys(2), 10), first)

    def test_checkpointing_computes_the_same_again(self):
        torch.manual_seed(0)
        noisy, x_BLD, keys_B = Noisy(), torch.randn(4, 5, 16), many_keys(4)
        gradients = []
        for again in (False, True):
            if again:  # without torch's own care for generators: there is none to care for
                out = checkpoint(noisy, x_BLD, keys_B, use_reentrant=False, preserve_rng_state=False)
            else:
                out = noisy(x_BLD, keys_B)
            gradients.append((out.detach(), torch.autograd.grad(out.square().sum(), noisy.linear.weight)[0]))
        assert torch.equal(gradients[0][0], gradients[1][0]) and torch.equal(gradients[0][1], gradients[1][1])

    def test_a_compiled_graph_draws_the_same_bits(self):
        keys_B = many_keys(3)

        def draw(keys_B):
            return derive(keys_B, 2**40 + 1), uniform(keys_B, 7, 9), normal(keys_B, 9)

        keys, values, bells = torch.compile(draw, fullgraph=True)(keys_B)
        assert torch.equal(keys, derive(keys_B, 2**40 + 1)) and torch.equal(values, uniform(keys_B, 7, 9))
        torch.testing.assert_close(bells, normal(keys_B, 9), rtol=1e-5, atol=2e-6)

    @pytest.mark.gpu
    def test_a_gpu_draws_the_same_bits(self):
        keys_B = many_keys(8)
        assert torch.equal(derive(keys_B.cuda(), 5).cpu(), derive(keys_B, 5))
        assert torch.equal(uniform(keys_B.cuda(), 33, 65).cpu(), uniform(keys_B, 33, 65))
        torch.testing.assert_close(normal(keys_B.cuda(), 1000).cpu(), normal(keys_B, 1000), rtol=1e-5, atol=2e-6)
        compiled = torch.compile(uniform, fullgraph=True)
        assert torch.equal(compiled(keys_B.cuda(), 33, 65).cpu(), uniform(keys_B, 33, 65))
