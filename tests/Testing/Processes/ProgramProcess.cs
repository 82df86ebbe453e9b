using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;

namespace Megatron.Testing.Processes;

/// <summary>A line that a process printed.</summary>
/// <param name="Text">Without its end.</param>
/// <param name="IsError">From standard error.</param>
/// <param name="Time">When this process read it.</param>
public sealed record OutputLine(string Text, bool IsError, DateTimeOffset Time);

/// <summary>
/// A child process whose lines are kept and can be awaited. It never outlives its owner: disposing kills it, and the tests' programs are killed
/// with this process by the harness that starts them.
/// </summary>
public sealed class ProgramProcess : IAsyncDisposable
{
    private readonly Process process;
    private readonly Lock gate = new();
    private readonly List<OutputLine> lines = [];
    private readonly Task reading;
    private TaskCompletionSource changed = NewSignal();

    private ProgramProcess(Process process)
    {
        this.process = process;
        reading = Task.WhenAll(ReadAsync(process.StandardOutput, isError: false), ReadAsync(process.StandardError, isError: true));
    }

    /// <summary>Its process id.</summary>
    public int Id => process.Id;

    /// <summary>Whether it has ended.</summary>
    public bool HasExited => process.HasExited;

    /// <summary>All lines so far.</summary>
    public IReadOnlyList<OutputLine> Lines
    {
        get
        {
            lock (gate) return [.. lines];
        }
    }

    /// <summary>Everything it printed, for the message of a failed test.</summary>
    public string Transcript => string.Join('\n', Lines.Select(line => (line.IsError ? "! " : "  ") + line.Text));

    /// <summary>The built console program as a process: <c>megatron</c> and the words.</summary>
    /// <param name="environment">Variables set or, with null, removed for it.</param>
    /// <param name="prefix">Words of a program that runs it, such as one that enters a network namespace.</param>
    public static ProgramProcess StartMegatron(
        IEnumerable<string> words, IReadOnlyDictionary<string, string?>? environment = null, IReadOnlyList<string>? prefix = null)
    {
        string program = Path.Combine(AppContext.BaseDirectory, "megatron.dll");
        var variables = new Dictionary<string, string?>(environment ?? new Dictionary<string, string?>())
        {
            // Several processes share the cores: threads that wait for one another at the end of each operation would make steps of 20 ms take seconds.
            ["OMP_THREAD_LIMIT"] = "1",
        };
        string[] all = [.. prefix ?? [], DotNet(), "exec", program, .. words];
        return Start(all[0], all[1..], variables);
    }

    /// <summary>Starts a program.</summary>
    public static ProgramProcess Start(string file, IEnumerable<string> words, IReadOnlyDictionary<string, string?>? environment = null)
    {
        var start = new ProcessStartInfo(file, words) { RedirectStandardOutput = true, RedirectStandardError = true, RedirectStandardInput = true };
        foreach (var (name, value) in environment ?? new Dictionary<string, string?>()) start.Environment[name] = value;
        return new ProgramProcess(Process.Start(start) ?? throw new InvalidOperationException($"{file} did not start."));
    }

    /// <summary>The first line, from <paramref name="from"/> on, that is wanted; waits for it.</summary>
    /// <param name="what">Names it in the message of a failure.</param>
    /// <exception cref="TimeoutException">It did not come in time, or the process ended without it; with all that was printed.</exception>
    public async Task<OutputLine> WaitForLineAsync(string what, Func<OutputLine, bool> isWanted, TimeSpan timeout, CancellationToken cancellation, int from = 0)
    {
        using var limit = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        limit.CancelAfter(timeout);
        int next = from;
        while (true)
        {
            Task more;
            bool isComplete = reading.IsCompleted;
            lock (gate)
            {
                for (; next < lines.Count; next++)
                    if (isWanted(lines[next])) return lines[next];
                more = changed.Task;
            }
            if (isComplete)
            {
                await process.WaitForExitAsync(limit.Token);
                throw Missing(what, string.Create(CultureInfo.InvariantCulture, $"the process ended with code {process.ExitCode} without it"));
            }
            try
            {
                await Task.WhenAny(more, reading).WaitAsync(limit.Token);
            }
            catch (OperationCanceledException) when (!cancellation.IsCancellationRequested)
            {
                throw Missing(what, string.Create(CultureInfo.InvariantCulture, $"it did not come within {timeout.TotalSeconds} s"));
            }
        }
    }

    /// <summary>Waits for its end and all its lines; returns its exit code, 128 + n after signal n.</summary>
    public async Task<int> ExitAsync(TimeSpan timeout, CancellationToken cancellation)
    {
        try
        {
            await process.WaitForExitAsync(cancellation).WaitAsync(timeout, cancellation);
            await reading.WaitAsync(timeout, cancellation);
        }
        catch (TimeoutException)
        {
            throw Missing("end of the process", string.Create(CultureInfo.InvariantCulture, $"it runs after {timeout.TotalSeconds} s"));
        }
        return process.ExitCode;
    }

    /// <summary>Sends a signal of <see cref="Posix"/>.</summary>
    public void Signal(int signal) => Posix.Signal(process.Id, signal);

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        if (!process.HasExited) Signal(Posix.SigKill);
        await process.WaitForExitAsync();
        await reading;
        process.Dispose();
    }

    private async Task ReadAsync(StreamReader reader, bool isError)
    {
        while (await reader.ReadLineAsync() is { } text)
        {
            TaskCompletionSource old;
            lock (gate)
            {
                lines.Add(new OutputLine(text, isError, TimeProvider.System.GetUtcNow()));
                (old, changed) = (changed, NewSignal());
            }
            old.SetResult();
        }
    }

    private TimeoutException Missing(string what, string why) => new($"{what}: {why}. It printed:\n{Transcript}");

    private static TaskCompletionSource NewSignal() => new(TaskCreationOptions.RunContinuationsAsynchronously);

    // The test may run by its own program file, so the host is found from the runtime: shared/Microsoft.NETCore.App/10.0.0 lies three folders below it.
    private static string DotNet() => Path.GetFullPath(Path.Combine(RuntimeEnvironment.GetRuntimeDirectory(), "..", "..", "..", "dotnet"));
}
