using Megatron.Compute.Data;

namespace Megatron.Compute.Tests.Data;

public sealed class RowMixTests
{
    private static readonly RowRef[][] Sets = [Rows(0, 100), Rows(1, 30)];

    [Fact]
    public void Interleave_FirstExhausted_EndsWithTheLastRowOfTheFirstSetUsedUp()
    {
        var mixed = Mix(untilAll: false, [0.5, 0.5]);
        Assert.Equal(new RowRef(1, 29), mixed[^1]);
        AssertInOrder(mixed);
        Assert.Equal(30, mixed.Count(row => row.Source == 1));
    }

    [Fact]
    public void Interleave_AllExhausted_BeginsTheSmallSetAgain()
    {
        var mixed = Mix(untilAll: true, [0.5, 0.5]);
        Assert.Equal(new RowRef(0, 99), mixed[^1]);
        Assert.Equal(100, mixed.Count(row => row.Source == 0));
        Assert.True(mixed.Count(row => row == new RowRef(1, 0)) > 1);
    }

    [Fact]
    public void Interleave_Shares_FollowTheProbabilities()
    {
        var mixed = RowMix.Interleave([Rows(0, 100_000), Rows(1, 100_000)], [0.8, 0.2], untilAll: false, new DataRandom(3, "interleave", 0));
        Assert.Equal(0.8, mixed.Count(row => row.Source == 0) / (double)mixed.Length, 0.01);
    }

    [Fact]
    public void Interleave_ProbabilityZero_NeverTakesTheSetAndDoesNotWaitForIt()
    {
        Assert.DoesNotContain(Mix(untilAll: true, [1, 0]), row => row.Source == 1);
        Assert.Equal(100, Mix(untilAll: false, [1, 0]).Length);
    }

    [Fact]
    public void Interleave_SameSeed_IsTheSame()
    {
        Assert.Equal(Mix(untilAll: true, [0.3, 0.7]), Mix(untilAll: true, [0.3, 0.7]));
        Assert.NotEqual(Mix(untilAll: true, [0.3, 0.7]), RowMix.Interleave(Sets, [0.3, 0.7], untilAll: true, new DataRandom(8, "interleave", 0)));
    }

    private static RowRef[] Mix(bool untilAll, double[] probabilities) => RowMix.Interleave(Sets, probabilities, untilAll, new DataRandom(7, "interleave", 0));

    private static RowRef[] Rows(int source, int count) => [.. Enumerable.Range(0, count).Select(row => new RowRef(source, row))];

    private static void AssertInOrder(RowRef[] mixed)
    {
        foreach (var set in mixed.GroupBy(row => row.Source)) Assert.Equal(Enumerable.Range(0, set.Count()), set.Select(row => row.Row));
    }
}
