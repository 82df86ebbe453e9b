using System.Globalization;
using Serilog;
using Serilog.Core;
using Serilog.Events;
using Serilog.Formatting.Compact;

namespace Megatron.Silo;

/// <summary>
/// Where a silo's log goes: everything into rolling files of compact JSON lines (job, attempt, rank and step are fields), only errors to the
/// console's error stream, which belongs to the training. What Orleans cannot deliver any more once the silo leaves is no error: a job that is cut short
/// was meant to be, so that goes to the files alone.
/// </summary>
internal static class SiloLogging
{
    private const long MaxFileSizeBytes = 64L << 20;
    private const int MaxFiles = 10;

    /// <param name="isLeaving">True once the silo was told to stop.</param>
    public static Logger Create(SiloOptions options, Func<bool> isLeaving)
    {
        var configuration = new LoggerConfiguration()
            .MinimumLevel.Information()
            .MinimumLevel.Override("Orleans", LogEventLevel.Warning)
            .MinimumLevel.Override("Microsoft", LogEventLevel.Warning)
            .Enrich.FromLogContext()
            .Enrich.WithProperty("Node", options.NodeName)
            .WriteTo.Conditional(line => !(isLeaving() && IsOfOrleans(line)), shown => shown.Console(
                LogEventLevel.Error, "{Level:u3} {Message:lj}{NewLine}", CultureInfo.InvariantCulture, standardErrorFromLevel: LogEventLevel.Verbose));
        if (options.LogFolder is { } folder)
        {
            configuration.WriteTo.File(
                new CompactJsonFormatter(), Path.Combine(folder, $"silo-{options.NodeName}-.clef"), fileSizeLimitBytes: MaxFileSizeBytes,
                rollingInterval: RollingInterval.Day, rollOnFileSizeLimit: true, retainedFileCountLimit: MaxFiles, shared: true);
        }
        return configuration.CreateLogger();
    }

    private static bool IsOfOrleans(LogEvent line) =>
        line.Properties.TryGetValue(Constants.SourceContextPropertyName, out var source) && source is ScalarValue { Value: string name }
        && (name.StartsWith("Orleans.", StringComparison.Ordinal) || name is "Polly");
}
