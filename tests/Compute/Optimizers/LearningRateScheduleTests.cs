using Megatron.Compute.Optimizers;

namespace Megatron.Compute.Tests.Optimizers;

public sealed class LearningRateScheduleTests
{
    private static readonly LearningRateOptions Golden = new()
    {
        Lr = 0.002, MinLr = 0.0002, DecayStyle = LearningRateDecay.Cosine, DecayIters = 20, WarmupIters = 4, GlobalBatchSize = 8,
    };

    // The learning_rate column of the golden trajectories (made in Python from the formula of numerics 3.9).
    private static readonly double[] GoldenRates =
    [
        0.0, 0.0005, 0.001, 0.0015, 0.002, 0.0019827067523629075, 0.001931491579260158, 0.0018483226510722908, 0.0017363961030678928,
        0.001600013209717642, 0.001444415089128581, 0.0012755812898145157, 0.0011, 0.0009244187101854846, 0.0007555849108714192,
        0.0005999867902823583, 0.0004636038969321073, 0.0003516773489277092, 0.00026850842073984193, 0.00021729324763709263,
    ];

    [Fact]
    public void At_GoldenSettings_GivesGoldenColumn()
    {
        var schedule = new LearningRateSchedule(Golden);
        for (var i = 0; i < GoldenRates.Length; i++) Assert.Equal(GoldenRates[i], schedule.At(i + 1), 1e-17);
    }

    [Fact]
    public void At_FirstStepWithWarmup_IsZero() => Assert.Equal(0.0, new LearningRateSchedule(Golden).At(1));

    [Fact]
    public void At_FirstStepWithoutWarmup_IsPeak() => Assert.Equal(0.002, new LearningRateSchedule(Golden with { WarmupIters = 0 }).At(1), 1e-17);

    [Theory]
    [InlineData(LearningRateDecay.Constant, 13, 0.002)]
    [InlineData(LearningRateDecay.Constant, 100, 0.002)]
    [InlineData(LearningRateDecay.Linear, 5, 0.002)]
    [InlineData(LearningRateDecay.Linear, 13, 0.0011)] // half way: (lr + min) / 2
    [InlineData(LearningRateDecay.Linear, 21, 0.0002)]
    [InlineData(LearningRateDecay.Linear, 22, 0.0002)]
    [InlineData(LearningRateDecay.Cosine, 9, 0.00173639610306789)]
    [InlineData(LearningRateDecay.Cosine, 1000, 0.0002)]
    [InlineData(LearningRateDecay.InverseSquareRoot, 5, 0.002)]
    [InlineData(LearningRateDecay.InverseSquareRoot, 17, 0.001)] // 4 times the warm-up: half the peak
    public void At_EachStyle_FollowsFormula(LearningRateDecay style, int iteration, double expected) =>
        Assert.Equal(expected, new LearningRateSchedule(Golden with { DecayStyle = style }).At(iteration), 1e-15);

    [Theory]
    [InlineData(AnnealShape.Exponential, 0.41421356237309515)] // 2·0.5^0.5 − 1
    [InlineData(AnnealShape.Linear, 0.5)]
    [InlineData(AnnealShape.Cosine, 0.5)]
    [InlineData(AnnealShape.MinusSquareRoot, 0.29289321881345254)]
    public void At_WarmupStableDecay_StaysThenAnneals(AnnealShape shape, double shareHalfWay)
    {
        var schedule = new LearningRateSchedule(Golden with { DecayStyle = LearningRateDecay.WarmupStableDecay, AnnealIters = 8, AnnealShape = shape });
        Assert.Equal(0.002, schedule.At(6), 1e-17);
        Assert.Equal(0.002, schedule.At(13), 1e-17);
        Assert.Equal(0.0002 + 0.0018 * shareHalfWay, schedule.At(17), 1e-15);
        Assert.Equal(0.0002, schedule.At(21), 1e-15);
    }

    [Fact]
    public void At_WarmupFraction_IsShareOfSchedule()
    {
        var byIters = new LearningRateSchedule(Golden);
        var byFraction = new LearningRateSchedule(Golden with { WarmupIters = 0, WarmupFraction = 0.2 });
        for (var i = 1; i <= 20; i++) Assert.Equal(byIters.At(i), byFraction.At(i), 1e-17);
    }

    [Fact]
    public void Constructor_WarmupNotShorterThanDecay_Throws() =>
        Assert.Contains("not shorter", Assert.Throws<ArgumentException>(() => new LearningRateSchedule(Golden with { WarmupIters = 20 })).Message);

    [Fact]
    public void Constructor_FloorAbovePeak_Throws() =>
        Assert.Contains("above lr", Assert.Throws<ArgumentException>(() => new LearningRateSchedule(Golden with { MinLr = 0.003 })).Message);
}
