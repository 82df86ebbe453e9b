using Megatron.Compute.Training;
using Megatron.Grains.Stages;
using Megatron.Testing;

namespace Megatron.Grains.Tests.Stages;

public sealed class ReportAggregatorTests
{
    private static readonly AttemptId attempt = new("job", 1);

    [Fact]
    public void Add_LastRankOfAStep_GivesSumsAndTheSlowestRank()
    {
        var aggregator = new ReportAggregator(stage: 1, numRanks: 2);
        Assert.Null(aggregator.Add(Step(1, 4) with { LossSum = 3, TokenCount = 6, StepTime = TimeSpan.FromMilliseconds(7) }));
        var step = aggregator.Add(Step(0, 4) with { LossSum = 1, TokenCount = 2, StepTime = TimeSpan.FromMilliseconds(5), LossBits = 42 });
        Assert.NotNull(step);
        Assert.Equal((1, 4L, 4.0, 8.0, 0.5, 42), (step.Stage, step.Iteration, step.LossSum, step.TokenCount, step.Loss, step.LossBits));
        Assert.Equal((TimeSpan.FromMilliseconds(7), 1), (step.StepTime, step.SlowestRank));
        Assert.Equal(2e11, step.FloatingPointOperations);
        Assert.True(step.BatchHashesAgree);
    }

    [Fact]
    public void Add_TimesAndTokens_AreJoinedOverTheRanks()
    {
        var aggregator = new ReportAggregator(stage: 0, numRanks: 2);
        TimeSpan Ms(int ms) => TimeSpan.FromMilliseconds(ms);
        aggregator.Add(Step(0, 1) with { StepTime = Ms(100), ComputeTime = Ms(60), PipelineWait = Ms(10), TokensPerExpert = [1, 2] });
        var step = aggregator.Add(Step(1, 1) with { StepTime = Ms(90), ComputeTime = Ms(80), PipelineWait = Ms(30), TokensPerExpert = [3, 4] });
        Assert.Equal((Ms(70), 0.2), (step?.ComputeTime, step?.BubbleFraction));
        Assert.Equal([4, 6], step?.TokensPerExpert);
        aggregator.Add(Step(0, 2));
        Assert.Equal((null, null, null), (aggregator.Add(Step(1, 2)) is { } plain ? (plain.ComputeTime, plain.BubbleFraction, plain.TokensPerExpert) : default));
    }

    [Fact]
    public void Add_Repetition_ChangesNothing()
    {
        var aggregator = new ReportAggregator(stage: 0, numRanks: 2);
        Assert.Null(aggregator.Add(Step(0, 1)));
        Assert.Null(aggregator.Add(Step(0, 1)));
        Assert.NotNull(aggregator.Add(Step(1, 1)));
        Assert.Null(aggregator.Add(Step(1, 1)));
        Assert.Null(aggregator.Add(Step(0, 1)));
    }

    [Fact]
    public void Add_RanksStepsApart_KeepsStepsSeparate()
    {
        var aggregator = new ReportAggregator(stage: 0, numRanks: 2);
        Assert.Null(aggregator.Add(Step(0, 1)));
        Assert.Null(aggregator.Add(Step(0, 2)));
        Assert.Equal(1, aggregator.Add(Step(1, 1))?.Iteration);
        Assert.Equal(2, aggregator.Add(Step(1, 2))?.Iteration);
    }

    [Fact]
    public void Add_OtherBatch_IsMarked()
    {
        var aggregator = new ReportAggregator(stage: 0, numRanks: 2);
        aggregator.Add(Step(0, 1) with { BatchHash = 1 });
        Assert.False(aggregator.Add(Step(1, 1) with { BatchHash = 2 })?.BatchHashesAgree);
    }

    [Fact]
    public void Add_Evaluations_AreSummedOverRanks()
    {
        var aggregator = new ReportAggregator(stage: 0, numRanks: 2);
        Assert.Null(aggregator.Add(new EvaluationReport(attempt, 0, 10, 2, 4, Final: false)));
        var evaluation = aggregator.Add(new EvaluationReport(attempt, 1, 10, 4, 4, Final: false));
        Assert.Equal(new StageEvaluation(10, 6, 8, false), evaluation);
        Assert.Equal(0.75, evaluation?.Loss);
    }

    private static StepReport Step(int rank, long iteration) =>
        FakeRankWorker.Step(new StartRank(attempt, "{}", rank, 2, rank, "local:x", null), iteration);
}
