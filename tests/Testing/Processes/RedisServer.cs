using System.Globalization;

namespace Megatron.Testing.Processes;

/// <summary>A redis-server of its own on a free port of loopback, with an append-only file in a temporary folder.</summary>
public sealed class RedisServer : IAsyncDisposable
{
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(30);

    private readonly TemporaryFolder folder = new();
    private readonly string[] options;
    private ProgramProcess? process;

    private RedisServer(int port, string[] options) => (Port, this.options) = (port, options);

    /// <summary>Why tests that need it are skipped.</summary>
    public const string SkipReason = "redis-server is not installed; install it with apt-get install redis-server";

    /// <summary>Whether the program is on the PATH.</summary>
    public static bool IsInstalled => FindProgram() is not null;

    /// <summary>Its port on 127.0.0.1.</summary>
    public int Port { get; }

    /// <summary>Its process.</summary>
    public ProgramProcess Process => process ?? throw new InvalidOperationException("Redis does not run.");

    /// <summary>Starts a server.</summary>
    /// <param name="options">Further options, e.g. <c>--requirepass secret</c>.</param>
    public static async Task<RedisServer> StartAsync(CancellationToken cancellation, params string[] options)
    {
        var server = new RedisServer(FreePorts.Take(1)[0], options);
        await server.StartAgainAsync(cancellation);
        return server;
    }

    /// <summary>Starts the server on its old port, after <see cref="KillAsync"/>; with its data unless they were removed.</summary>
    public async Task StartAgainAsync(CancellationToken cancellation)
    {
        string program = FindProgram() ?? throw new InvalidOperationException(SkipReason);
        string port = Port.ToString(CultureInfo.InvariantCulture);
        process = ProgramProcess.Start(program,
            ["--port", port, "--bind", "127.0.0.1", "--dir", folder.Root, "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", .. options]);
        await process.WaitForLineAsync("redis-server ready", line => line.Text.Contains("Ready to accept connections", StringComparison.Ordinal), patience, cancellation);
    }

    /// <summary>Ends the server with SIGKILL.</summary>
    /// <param name="keepData">False removes all that it has written: the next start is empty.</param>
    public async Task KillAsync(bool keepData)
    {
        if (process is not null) await process.DisposeAsync();
        process = null;
        if (keepData) return;
        foreach (string path in Directory.GetFileSystemEntries(folder.Root))
        {
            if (Directory.Exists(path)) Directory.Delete(path, recursive: true);
            else File.Delete(path);
        }
    }

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        await KillAsync(keepData: true);
        folder.Dispose();
    }

    private static string? FindProgram() => (Environment.GetEnvironmentVariable("PATH") ?? "").Split(Path.PathSeparator)
        .Select(place => Path.Combine(place, "redis-server")).FirstOrDefault(File.Exists);
}
