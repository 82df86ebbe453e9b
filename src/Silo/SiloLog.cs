using Microsoft.Extensions.Logging;

namespace Megatron.Silo;

/// <summary>What a silo says about itself.</summary>
internal static partial class SiloLog
{
    [LoggerMessage(LogLevel.Error, "lease lost: {Reason}; the ranks are aborted and nothing is committed")]
    public static partial void LeaseLost(ILogger logger, string reason);

    [LoggerMessage(LogLevel.Warning, "lease regained")]
    public static partial void LeaseRegained(ILogger logger);

    [LoggerMessage(LogLevel.Warning, "the silo could not leave its cluster; the others will find out")]
    public static partial void LeaveFailed(ILogger logger, Exception fault);

    [LoggerMessage(LogLevel.Error, "the process ends: {Reason}")]
    public static partial void Ending(ILogger logger, string reason);
}
