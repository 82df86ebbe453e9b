using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;

namespace Megatron.EndToEnd.Tests;

/// <summary>The console program as a process of its own: for signals, memory and cold starts.</summary>
internal sealed class MegatronProcess : IDisposable
{
    private readonly Process process;
    private readonly Task<string> error;
    private readonly string cache = Directory.CreateTempSubdirectory("megatron-cache-").FullName;

    public MegatronProcess(params string[] words)
        : this(heapMebibytes: null, words)
    {
    }

    /// <summary>The same with a limit on the managed heap, beyond which the program fails.</summary>
    public MegatronProcess(int? heapMebibytes, string[] words)
    {
        var program = Path.Combine(AppContext.BaseDirectory, "megatron.dll");
        var start = new ProcessStartInfo(DotNet(), ["exec", program, .. words]) { RedirectStandardOutput = true, RedirectStandardError = true };
        start.Environment["MEGATRON_CACHE"] = cache; // prepared data of tests do not stay with the user's
        if (heapMebibytes is { } limit) start.Environment["DOTNET_GCHeapHardLimit"] = $"0x{(long)limit << 20:x}";
        process = Process.Start(start) ?? throw new InvalidOperationException("The process did not start.");
        error = process.StandardError.ReadToEndAsync();
    }

    /// <summary>Reads lines up to the first that <paramref name="isIt"/> accepts.</summary>
    public async Task<string> ReadUntilAsync(Func<string, bool> isIt)
    {
        var read = new List<string>();
        while (await process.StandardOutput.ReadLineAsync(TestContext.Current.CancellationToken) is { } line)
        {
            if (isIt(line)) return line;
            read.Add(line);
        }
        throw new InvalidOperationException($"The line did not come:\n{string.Join('\n', read)}\n{await error}");
    }

    /// <summary>Sends a signal by name, e.g. TERM.</summary>
    public async Task SignalAsync(string name)
    {
        using var kill = Process.Start("kill", ["-" + name, process.Id.ToString(CultureInfo.InvariantCulture)]);
        await kill.WaitForExitAsync(TestContext.Current.CancellationToken);
    }

    /// <summary>Lets <see cref="PeakResidentKiB"/> begin anew (proc(5), clear_refs).</summary>
    public void ForgetPeakResident() => File.WriteAllText($"/proc/{process.Id}/clear_refs", "5");

    /// <summary>The most resident memory so far, in KiB; 0 after its end.</summary>
    public int PeakResidentKiB() => StatusKiB("VmHWM:");

    private int StatusKiB(string name)
    {
        var line = File.ReadLines($"/proc/{process.Id}/status").FirstOrDefault(line => line.StartsWith(name, StringComparison.Ordinal));
        return line is null ? 0 : int.Parse(line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[1], CultureInfo.InvariantCulture);
    }

    /// <summary>The most memory it has had resident so far, in bytes; 0 after its end.</summary>
    public long PeakResidentBytes()
    {
        try
        {
            var line = File.ReadLines($"/proc/{process.Id}/status").FirstOrDefault(line => line.StartsWith("VmHWM:", StringComparison.Ordinal));
            return line is null ? 0 : long.Parse(line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[1], CultureInfo.InvariantCulture) << 10;
        }
        catch (IOException)
        {
            return 0;
        }
    }

    /// <summary>The rest of the output, after the end of the process.</summary>
    public async Task<CommandResult> EndAsync()
    {
        var output = await process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        return new CommandResult(process.ExitCode, output, await error);
    }

    public void Dispose()
    {
        if (!process.HasExited) process.Kill();
        process.Dispose();
        Directory.Delete(cache, recursive: true);
    }

    // The test may run by its own program file, so the host is found from the runtime: shared/Microsoft.NETCore.App/10.0.0 lies three folders below it.
    private static string DotNet() => Path.GetFullPath(Path.Combine(RuntimeEnvironment.GetRuntimeDirectory(), "..", "..", "..", "dotnet"));
}
