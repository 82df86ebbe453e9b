namespace Megatron.Faults;

/// <summary>One row of the table: a goal and what was measured.</summary>
/// <param name="Id">R1 to R25.</param>
/// <param name="What">What is measured.</param>
/// <param name="Must">The goal, in words.</param>
/// <param name="Measured">The figures.</param>
/// <param name="Repetitions">How many faults are behind them.</param>
/// <param name="IsMet">Whether the goal is met; null when it could not be measured here.</param>
public sealed record GoalResult(string Id, string What, string Must, string Measured, int Repetitions, bool? IsMet)
{
    /// <summary>A goal that could not be measured, and why.</summary>
    public static GoalResult Unmeasured(string id, string what, string must, string why) => new(id, what, must, "not measured: " + why, 0, null);
}
