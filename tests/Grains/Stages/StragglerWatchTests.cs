using Megatron.Grains.Stages;

namespace Megatron.Grains.Tests.Stages;

/// <summary>R26: a rank that is slowed twofold is named within 10 steps, and no other one in 1,000.</summary>
public sealed class StragglerWatchTests
{
    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(8)]
    [InlineData(64)]
    public void Add_NoisyEqualRanks_NamesNobodyInAThousandSteps(int numRanks)
    {
        for (int seed = 0; seed < 5; seed++)
        {
            var (random, watch) = (new Random(seed), new StragglerWatch());
            for (int step = 1; step <= 1000; step++)
                Assert.True(watch.Add(Step(random, numRanks)) is null, $"seed {seed}, step {step}");
        }
    }

    [Theory]
    [InlineData(2)]
    [InlineData(8)]
    [InlineData(64)]
    public void Add_OneRankSlowedTwofold_IsNamedWithinTenStepsAndClearedAfterwards(int numRanks)
    {
        for (int seed = 0; seed < 20; seed++)
        {
            var (random, watch) = (new Random(seed), new StragglerWatch());
            int slow = random.Next(numRanks), before = random.Next(1, 200);
            for (int step = 0; step < before; step++)
                Assert.Null(watch.Add(Step(random, numRanks)));
            var named = Enumerable.Range(1, 10).Select(_ => watch.Add(Step(random, numRanks, slow))).ToList();
            Assert.True(named[^1]?.Rank == slow, $"seed {seed}");
            Assert.All(named, straggler => Assert.True(straggler is null || straggler.Rank == slow, $"seed {seed}"));
            for (int step = 0; step < 20; step++)
                watch.Add(Step(random, numRanks));
            Assert.True(watch.Add(Step(random, numRanks)) is null, $"seed {seed}");
        }
    }

    [Fact]
    public void Add_RankWithoutPeersOrWithoutATime_NamesNobody()
    {
        var watch = new StragglerWatch();
        for (int step = 0; step < 20; step++)
        {
            Assert.Null(watch.Add([(0, TimeSpan.FromMilliseconds(step % 2 * 100))]));
            Assert.Null(watch.Add([(0, TimeSpan.FromMilliseconds(1)), (1, null)]));
        }
    }

    // Steps of 50 ms with a tenth of noise, and one in fifty that is up to five times as long.
    private static List<(int, TimeSpan?)> Step(Random random, int numRanks, int? slow = null) =>
    [
        .. Enumerable.Range(0, numRanks).Select(rank =>
        {
            double noise = Math.Exp(0.1 * Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble()));
            double spike = random.Next(50) == 0 ? 1 + 4 * random.NextDouble() : 1;
            return (rank, (TimeSpan?)TimeSpan.FromMilliseconds(50 * noise * spike * (rank == slow ? 2 : 1)));
        }),
    ];
}
