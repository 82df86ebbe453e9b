using System.Globalization;
using Serilog;
using Serilog.Core;
using Serilog.Events;
using Serilog.Formatting.Compact;

namespace Megatron.Silo;

/// <summary>
/// Where a silo's log goes: everything into rolling files of compact JSON lines (job, attempt, rank and step are fields), only errors to the
/// console's error stream, which belongs to the training. Lines of Orleans go to the files alone: a call that it cannot deliver, while a silo comes or
/// goes, is repeated here or made good, and what cannot be made good is told in our own words.
/// </summary>
internal static class SiloLogging
{
    private const long MaxFileSizeBytes = 64L << 20;
    private const int MaxFiles = 10;

    public static Logger Create(SiloOptions options)
    {
        var configuration = new LoggerConfiguration()
            .MinimumLevel.Information()
            .MinimumLevel.Override("Orleans", LogEventLevel.Warning)
            .MinimumLevel.Override("Microsoft", LogEventLevel.Warning)
            .Enrich.FromLogContext()
            .Enrich.WithProperty("Node", options.NodeName)
            .WriteTo.Conditional(line => !IsOfOrleans(line), shown => shown.Console(
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
        && (name.StartsWith("Orleans", StringComparison.Ordinal) || name.StartsWith("Microsoft.", StringComparison.Ordinal) || name is "Polly");
}
