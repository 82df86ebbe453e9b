using Megatron.Grains.Jobs;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains;

/// <summary>What the control plane writes to the log. Fields are named alike everywhere: JobId, Attempt, Rank, Iteration.</summary>
internal static partial class GrainLog
{
    [LoggerMessage(LogLevel.Information, "job {JobId} attempt {Attempt}: {Phase}: {Reason}")]
    public static partial void PhaseChanged(ILogger logger, string jobId, int attempt, JobPhase phase, string reason);

    [LoggerMessage(LogLevel.Debug, "job {JobId}: {Input} ignored ({Verdict}): {Reason}")]
    public static partial void InputIgnored(ILogger logger, string jobId, string input, JobVerdict verdict, string reason);

    [LoggerMessage(LogLevel.Information, "job {JobId} attempt {Attempt} step {Iteration}: loss {Loss}, grad norm {GradNorm}, {StepMs} ms")]
    public static partial void StepDone(ILogger logger, string jobId, int attempt, long iteration, double loss, double gradNorm, double stepMs);

    [LoggerMessage(LogLevel.Information, "job {JobId} attempt {Attempt} rank {Rank} on device {Device}: {Command}")]
    public static partial void RankCommanded(ILogger logger, string jobId, int attempt, int rank, string device, string command);

    [LoggerMessage(LogLevel.Information, "job {JobId} attempt {Attempt}: {Command} for device {Device} is stale and ignored")]
    public static partial void StaleCommand(ILogger logger, string jobId, int attempt, string device, string command);

    // Not an error of this program: the job tells the user in one sentence, and the detail belongs into the file, never on the console.
    [LoggerMessage(LogLevel.Warning, "job {JobId} attempt {Attempt} rank {Rank} faulted: {Message}; {Detail}")]
    public static partial void RankFaulted(ILogger logger, string jobId, int attempt, int rank, string message, string detail);

    [LoggerMessage(LogLevel.Information, "job {JobId} attempt {Attempt} save {SaveId} step {Iteration}: {Reason}")]
    public static partial void Checkpoint(ILogger logger, string jobId, int attempt, string saveId, long iteration, string reason);

    [LoggerMessage(LogLevel.Warning, "silo {Silo} is gone: its machine refuses connections")]
    public static partial void SiloGone(ILogger logger, string silo);

    [LoggerMessage(LogLevel.Warning, "a message was not delivered ({What}): {Message}")]
    public static partial void CallFailed(ILogger logger, string what, string message);

    [LoggerMessage("{Count} reports were not delivered, again in {DelaySeconds} s")]
    public static partial void DeliveryFailed(ILogger logger, LogLevel level, int count, double delaySeconds, Exception fault);
}
