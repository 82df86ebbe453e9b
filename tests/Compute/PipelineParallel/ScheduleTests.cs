using Megatron.Compute.PipelineParallel;
using static Megatron.Compute.PipelineParallel.PipelineActionKind;

namespace Megatron.Compute.Tests.PipelineParallel;

/// <summary>Schedules judged without tensors.</summary>
public sealed class ScheduleTests
{
    /// <summary>The backward as one piece, as the papers draw it.</summary>
    private static readonly PipelineCosts WholeBackward = new(1, 2, 0);

    [Fact]
    public void NoPipelining_AnyNumber_IsValidAndSavesOne()
    {
        for (var numMicroBatches = 1; numMicroBatches <= 8; numMicroBatches++)
        {
            var report = ScheduleValidator.Check([NoPipelining.Build(numMicroBatches)], new PipelineShape(1, 1), numMicroBatches, isForwardOnly: false);
            Assert.Empty(report.Problems);
            Assert.Equal([1], report.PeakSavedActivations);
        }
    }

    [Fact]
    public void OneForwardOneBackward_EveryShape_IsValidAndSavesTheTheoreticalCount()
    {
        for (var numStages = 1; numStages <= 16; numStages++)
            foreach (var numMicroBatches in (int[])[1, 2, 3, 7, 8, 16, 64])
            {
                var report = ScheduleValidator.Check(Build1F1B(numStages, numMicroBatches), new PipelineShape(numStages, 1), numMicroBatches, isForwardOnly: false);
                Assert.Empty(report.Problems);
                Assert.Equal(Enumerable.Range(0, numStages).Select(stage => Math.Min(numStages - stage, numMicroBatches)), report.PeakSavedActivations);
            }
    }

    [Fact]
    public void OneForwardOneBackward_OneStage_IsNoPipelining() =>
        Assert.Equal(NoPipelining.Build(5), OneForwardOneBackward.Build(1, 0, 5));

    [Fact]
    public void OneForwardOneBackward_4Stages8MicroBatches_FollowsThePaper()
    {
        // Stage 2 of 4: one forward ahead, then in turn (arXiv 2104.04473, figure 4).
        var computes = OneForwardOneBackward.Build(4, 2, 4).Where(action => action.Kind is Forward or BackwardInput);
        Assert.Equal(
            [(Forward, 0), (Forward, 1), (BackwardInput, 0), (Forward, 2), (BackwardInput, 1), (Forward, 3), (BackwardInput, 2), (BackwardInput, 3)],
            computes.Select(action => (action.Kind, action.MicroBatch)));
    }

    [Fact]
    public void ForwardOnly_EveryShape_IsValidAndSavesNothing()
    {
        for (var numStages = 1; numStages <= 16; numStages++)
            for (var numChunks = 1; numChunks <= (numStages == 1 ? 1 : 4); numChunks++)
                foreach (var numMicroBatches in (int[])[1, 2, 5, 8, 64])
                {
                    var shape = new PipelineShape(numStages, numChunks);
                    var stages = Enumerable.Range(0, numStages).Select(stage => ForwardOnly.Build(shape, stage, numMicroBatches)).ToArray();
                    var report = ScheduleValidator.Check(stages, shape, numMicroBatches, isForwardOnly: true);
                    Assert.Empty(report.Problems);
                    Assert.All(report.PeakSavedActivations, peak => Assert.Equal(0, peak));
                }
    }

    [Fact]
    public void AllForwardAllBackward_EveryShape_IsValidAndSavesEverything()
    {
        for (var numStages = 2; numStages <= 16; numStages++)
            foreach (var numMicroBatches in (int[])[1, 3, 8, 64])
            {
                var stages = Enumerable.Range(0, numStages).Select(stage => AllForwardAllBackward.Build(numStages, stage, numMicroBatches)).ToArray();
                var report = ScheduleValidator.Check(stages, new PipelineShape(numStages, 1), numMicroBatches, isForwardOnly: false);
                Assert.Empty(report.Problems);
                Assert.All(report.PeakSavedActivations, peak => Assert.Equal(numMicroBatches, peak));
            }
    }

    [Fact]
    public void Interleaved_EveryShape_IsValidSavesTheTheoreticalCountAndIdlesAsThePaperSays()
    {
        foreach (var numStages in (int[])[2, 3, 4, 5, 8, 16])
            for (var numChunks = 2; numChunks <= 4; numChunks++)
                foreach (var groups in (int[])[1, 2, 4, 64 / numStages])
                {
                    var (shape, numMicroBatches) = (new PipelineShape(numStages, numChunks), groups * numStages);
                    var stages = InterleavedOneForwardOneBackward.Build(shape, numMicroBatches);
                    var report = ScheduleValidator.Check(stages, shape, numMicroBatches, isForwardOnly: false);
                    Assert.Empty(report.Problems);
                    Assert.Equal(
                        Enumerable.Range(0, numStages).Select(stage => Math.Min(2 * (numStages - stage - 1) + (numChunks - 1) * numStages + 1, numMicroBatches * numChunks)),
                        report.PeakSavedActivations);
                    // arXiv 2104.04473, section 2.2.2: the bubble is (p − 1)/v of a micro-batch's forward and backward; less the weight
                    // halves, since gradients are sent before them.
                    Assert.Equal(3 * (numMicroBatches * numChunks + numStages - 1), PipelineTimeline.Of(stages, shape, WholeBackward).Length);
                    Assert.Equal(3 * numMicroBatches * numChunks + 2 * (numStages - 1), PipelineTimeline.Of(stages, shape, PipelineCosts.Equal).Length);
                }
    }

    [Fact]
    public void ZeroBubble_EveryShape_IsValidSavesTheTheoreticalCountAndIdlesAsThePaperSays()
    {
        for (var numStages = 1; numStages <= 16; numStages++)
            foreach (var numMicroBatches in (int[])[1, 2, 3, 7, 8, 16, 64])
            {
                var stages = ZeroBubble.Build(numStages, numMicroBatches);
                var shape = new PipelineShape(numStages, 1);
                var report = ScheduleValidator.Check(stages, shape, numMicroBatches, isForwardOnly: false);
                Assert.Empty(report.Problems);
                Assert.All(report.PeakSavedActivations, peak => Assert.Equal(Math.Min(numStages, numMicroBatches), peak));
                // arXiv 2401.10241, table 2: (p − 1)(T_F + T_B − T_W), here p − 1; 1F1B idles (p − 1)(T_F + T_B) when it sends gradients early.
                if (numMicroBatches < numStages) continue;
                Assert.Equal(3 * numMicroBatches + numStages - 1, PipelineTimeline.Of(stages, shape, PipelineCosts.Equal).Length);
                Assert.Equal(3 * numMicroBatches + 2 * (numStages - 1), PipelineTimeline.Of(Build1F1B(numStages, numMicroBatches), shape, PipelineCosts.Equal).Length);
            }
    }

    [Fact]
    public void BubbleFraction_OneForwardOneBackward_IsTheFormula()
    {
        var timeline = PipelineTimeline.Of(Build1F1B(4, 8), new PipelineShape(4, 1), WholeBackward);
        Assert.Equal(3.0 / 11, timeline.BubbleFraction, 12);
    }

    [Fact]
    public void Build_EveryKind_ChoosesItsBuilder()
    {
        var (flat, chunked) = (new PipelineShape(4, 1), new PipelineShape(4, 2));
        Assert.Equal(NoPipelining.Build(3), PipelineSchedules.Build(PipelineScheduleKind.ZeroBubble, new PipelineShape(1, 1), 0, 3));
        Assert.Equal(OneForwardOneBackward.Build(4, 1, 8), PipelineSchedules.Build(PipelineScheduleKind.Auto, flat, 1, 8));
        Assert.Equal(OneForwardOneBackward.Build(4, 1, 8), PipelineSchedules.Build(PipelineScheduleKind.OneForwardOneBackward, flat, 1, 8));
        Assert.Equal(AllForwardAllBackward.Build(4, 1, 8), PipelineSchedules.Build(PipelineScheduleKind.GPipe, flat, 1, 8));
        Assert.Equal(ZeroBubble.Build(4, 8)[1], PipelineSchedules.Build(PipelineScheduleKind.ZeroBubble, flat, 1, 8));
        Assert.Equal(InterleavedOneForwardOneBackward.Build(chunked, 8)[1], PipelineSchedules.Build(PipelineScheduleKind.Auto, chunked, 1, 8));
        Assert.Throws<ArgumentException>(() => PipelineSchedules.Build(PipelineScheduleKind.ZeroBubble, chunked, 1, 8));
        Assert.Throws<ArgumentException>(() => PipelineSchedules.Build(PipelineScheduleKind.Interleaved, chunked, 1, 6));
    }

    [Fact]
    public void Check_AnyActionLeftOut_IsFound()
    {
        var stages = Build1F1B(3, 4);
        for (var stage = 0; stage < 3; stage++)
            for (var i = 0; i < stages[stage].Count; i++)
            {
                var broken = stages.ToArray();
                broken[stage] = [.. stages[stage].Where((_, index) => index != i)];
                Assert.NotEmpty(Check(broken, 4).Problems);
            }
    }

    [Fact]
    public void Check_AnyActionTwice_IsFound()
    {
        var stages = Build1F1B(3, 4);
        for (var i = 0; i < stages[1].Count; i++)
        {
            var broken = stages.ToArray();
            broken[1] = [.. stages[1], stages[1][i]];
            Assert.Contains(Check(broken, 4).Problems, problem => problem.Contains("twice"));
        }
    }

    [Theory]
    [InlineData(Forward, BackwardInput)]
    [InlineData(BackwardInput, BackwardWeight)]
    [InlineData(ReceiveForward, Forward)]
    [InlineData(Forward, SendForward)]
    [InlineData(ReceiveBackward, BackwardInput)]
    [InlineData(BackwardInput, SendBackward)]
    public void Check_DependentActionsSwapped_IsFound(PipelineActionKind earlier, PipelineActionKind later)
    {
        var stages = Build1F1B(3, 4);
        var actions = stages[1].ToList();
        var (first, second) = (actions.IndexOf(new PipelineAction(earlier, 2, 0)), actions.IndexOf(new PipelineAction(later, 2, 0)));
        (actions[first], actions[second]) = (actions[second], actions[first]);
        Assert.Contains(Check([stages[0], actions, stages[2]], 4).Problems, problem => problem.Contains("before what it needs"));
    }

    [Fact]
    public void Check_ForeignAction_IsFound()
    {
        var stages = Build1F1B(2, 2);
        var report = ScheduleValidator.Check(
            [[.. stages[0], new PipelineAction(ReceiveForward, 0, 0)], stages[1]], new PipelineShape(2, 1), 2, isForwardOnly: false);
        Assert.Contains("where 10 are needed", Assert.Single(report.Problems));
    }

    [Fact]
    public void Check_SendsInAnotherOrderThanReceives_IsFound()
    {
        // Stage 0 sends micro-batch 1 first, stage 1 expects 0 first; each list alone is in order.
        PipelineAction[] first = [new(Forward, 1, 0), new(SendForward, 1, 0), new(Forward, 0, 0), new(SendForward, 0, 0)];
        PipelineAction[] second = [new(ReceiveForward, 0, 0), new(Forward, 0, 0), new(ReceiveForward, 1, 0), new(Forward, 1, 0)];
        var report = ScheduleValidator.Check([first, second], new PipelineShape(2, 1), 2, isForwardOnly: true);
        Assert.Contains("expects the activation of micro-batch 0", Assert.Single(report.Problems));
    }

    [Fact]
    public void Check_CircularWait_IsADeadlock()
    {
        // Stage 0 wants the gradient of micro-batch 0 before it sends micro-batch 1; stage 1 wants both forwards first.
        PipelineAction[] first =
        [
            new(Forward, 0, 0), new(SendForward, 0, 0), new(ReceiveBackward, 0, 0), new(BackwardInput, 0, 0), new(BackwardWeight, 0, 0),
            new(Forward, 1, 0), new(SendForward, 1, 0), new(ReceiveBackward, 1, 0), new(BackwardInput, 1, 0), new(BackwardWeight, 1, 0),
        ];
        PipelineAction[] second =
        [
            new(ReceiveForward, 0, 0), new(Forward, 0, 0), new(ReceiveForward, 1, 0), new(Forward, 1, 0), new(BackwardInput, 0, 0),
            new(SendBackward, 0, 0), new(BackwardWeight, 0, 0), new(BackwardInput, 1, 0), new(SendBackward, 1, 0), new(BackwardWeight, 1, 0),
        ];
        var report = ScheduleValidator.Check([first, second], new PipelineShape(2, 1), 2, isForwardOnly: false);
        Assert.Equal(2, report.Problems.Count);
        Assert.All(report.Problems, problem => Assert.Contains("Deadlock", problem));
    }

    [Fact]
    public void Build_NoMicroBatch_Throws()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => NoPipelining.Build(0));
        Assert.Throws<ArgumentOutOfRangeException>(() => OneForwardOneBackward.Build(2, 0, 0));
        Assert.Throws<ArgumentOutOfRangeException>(() => ForwardOnly.Build(new PipelineShape(2, 1), 0, 0));
    }

    private static IReadOnlyList<PipelineAction>[] Build1F1B(int numStages, int numMicroBatches) =>
        [.. Enumerable.Range(0, numStages).Select(stage => OneForwardOneBackward.Build(numStages, stage, numMicroBatches))];

    private static ScheduleReport Check(IReadOnlyList<PipelineAction>[] stages, int numMicroBatches) =>
        ScheduleValidator.Check(stages, new PipelineShape(stages.Length, 1), numMicroBatches, isForwardOnly: false);
}
