using System.Collections.Immutable;
using Megatron.Grains.Stages;

namespace Megatron.Grains.Jobs;

/// <summary>The newest step of each stage of the newest attempt, and which ranks are named as slow. Plain state; not stored, the next step brings it back.</summary>
public sealed class StageBoard
{
    private readonly SortedDictionary<int, StageStatus> stages = [];
    private int attempt;

    /// <summary>One row for each stage that has reported a step.</summary>
    public ImmutableArray<StageStatus> Rows => [.. stages.Values];

    /// <summary>Takes a stage's step; returns the straggler before and now when that changed.</summary>
    public (Straggler? Before, Straggler? Now)? Take(int ofAttempt, StageStepReport step)
    {
        if (ofAttempt < attempt)
            return null;
        if (ofAttempt > attempt)
            stages.Clear();
        attempt = ofAttempt;
        var before = stages.GetValueOrDefault(step.Stage)?.Straggler;
        stages[step.Stage] = new StageStatus(
            step.Stage, step.NumRanks, step.Iteration, step.StepTime, step.ComputeTime, step.BubbleFraction, step.Straggler);
        return before?.Rank == step.Straggler?.Rank ? null : (before, step.Straggler);
    }
}
